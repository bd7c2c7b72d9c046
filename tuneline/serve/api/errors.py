"""Errors of the API in the shape of OpenAI: `{"error": {"message", "type", "param", "code"}}`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from tuneline.errors import did_you_mean

INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A response with an error body.

    Args:
        status: HTTP status.
        message: What was found, what was expected, what to do.
        param: Path of the field, such as `messages[0].content`.
        code: Machine-readable code, such as `model_not_found`.
        retry_after: Seconds for the `Retry-After` header.
        close: Close the connection after the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if close:
            self.headers["Connection"] = "close"

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = TYPES.get(self.status, INVALID if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(orjson.dumps(self.body), self.status, self.headers, media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return an error with status 400."""
    return ApiError(400, message, param, code)


def unknown_field(path: str, known: Iterable[str]) -> ApiError:
    """Return the error for a field that is not in the schema."""
    name = path.rpartition(".")[2]
    message = f"Unknown field {path!r}.{did_you_mean(name, known)} Remove or correct it."
    return bad_request(message, path, "unknown_field")


def format_path(location: Iterable[int | str], names: Iterable[str]) -> str:
    """Return the path of a field as users write it: `messages[0].content`.

    Pydantic adds the tags of unions to a location; parts that are not `names` of fields are left out.
    """
    known = set(names)
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in known:
            path += f".{part}" if path else part
    return path


def from_validation_error(
    error: ValidationError, names: Iterable[str], children: Mapping[str, Iterable[str]]
) -> ApiError:
    """Return the API error for the most specific of pydantic's errors.

    A union reports the errors of all its members. The error that is deepest inside the request belongs to the member
    that the user meant; errors of one place are joined.

    Args:
        error: Error of a request model.
        names: Names of all fields of the schemas.
        children: Names of the fields inside each field; those of the body inside the empty name.
    """
    known = list(names)
    problems = [(_depth(item, known), item) for item in error.errors(include_url=False)]
    _, details = max(problems, key=lambda problem: problem[0])
    path = format_path(details["loc"], known)
    if details["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON: {_reason(details)}. Send a JSON object.", code="invalid_json")
    if details["type"] == "extra_forbidden":
        parent = re.sub(r"\[\d+\]", "", path.rpartition(".")[2])
        unknown = str(details["loc"][-1])
        return unknown_field(f"{path}.{unknown}" if path else unknown, children.get(parent, ()))
    if details["type"] == "missing":
        return bad_request(f"The field {path!r} is missing. Add it.", path, "missing_field")
    if not path and details["type"] != "value_error":
        return bad_request("The body is not a JSON object. Send a JSON object.", code="invalid_json")
    if not path:
        return _disagreement(_reason(details), known)
    reasons = dict.fromkeys(_reason(item) for _, item in problems if format_path(item["loc"], known) == path)
    value = "" if details["type"] == "value_error" else f"{_shorten(details['input'])}; "
    reason = ", or ".join(reasons).replace(", or expected", ", or")
    return bad_request(f"Invalid value of {path!r}: {value}{reason}.", path, "invalid_value")


def _disagreement(message: str, known: list[str]) -> ApiError:
    """Return the error of a rule across fields; the first field that it names is its parameter."""
    param = next((name for name in re.findall(r"'(\w+)'", message) if name in known), None)
    return bad_request(f"{message}.", param, "invalid_value")


def _depth(details: Any, known: list[str]) -> tuple[int, int]:
    """Return how deep an error is, and its rank at that depth: a wrong type explains the fields that it brings."""
    is_unknown = details["type"] == "extra_forbidden"
    depth = sum(isinstance(part, int) or part in known for part in details["loc"])
    is_new = is_unknown and details["loc"][-1] not in known
    return depth + is_new, 2 if details["type"] == "literal_error" else int(is_unknown)


def _reason(details: Any) -> str:
    reason = str(details.get("ctx", {}).get("error", details["msg"])).rstrip(".")
    reason = reason.removeprefix("Invalid JSON: ").removesuffix(" after validation, not 0")
    return re.sub("^(Input should be|(List|String) should have)", "expected", reason)


def _shorten(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def engine_failed(error: Exception, retry_after: int) -> ApiError:
    """Return the error for an engine that died or does not respond."""
    message = f"{str(error).rstrip('.')}."
    if "again" not in message:
        message += " Send the request again."
    return ApiError(503, message, None, "engine_failed", retry_after)


def unknown_model(error: Exception) -> ApiError:
    """Return the error for a model that is not served."""
    return ApiError(404, str(error), "model", "model_not_found")


def internal_error() -> ApiError:
    """Return the error for a defect of the server; the details are in its log."""
    return ApiError(500, "Internal error; the log of the server has the details.", None, "internal_error")
