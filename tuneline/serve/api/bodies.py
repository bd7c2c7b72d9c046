"""Reading and validating request bodies."""

from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tuneline.serve.api import schemas, text_schemas
from tuneline.serve.api.access import ClientClosedError
from tuneline.serve.api.errors import ApiError, bad_request, from_validation_error, unknown_field
from tuneline.serve.engines.interface import Engine

Body = TypeVar("Body", bound=schemas.Strict)


def _schemas(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for schema in base.__subclasses__():
        yield schema
        yield from _schemas(schema)


def _names(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the schemas inside the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts_of(argument)


_SCHEMAS = [s for s in _schemas(schemas.Strict) if s.__module__ in (schemas.__name__, text_schemas.__name__)]
FIELD_NAMES = frozenset(name for schema in _SCHEMAS for name in _names(schema))
CHILDREN = {
    field.alias or name: [child for part in _parts_of(field.annotation) for child in _names(part)]
    for schema in _SCHEMAS
    for name, field in schema.model_fields.items()
}
"""Names of the fields inside each field."""


async def read_body(request: Request, schema: type[Body]) -> Body:
    """Return the validated body of a request.

    Raises:
        ApiError: Status 400: not JSON, an unknown field, a wrong type or a value out of range.
    """
    content = bytearray()
    async for part in _parts(request):
        content += part
    return parse_body(bytes(content), schema)


async def _parts(request: Request) -> Any:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientClosedError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def parse_body(content: bytes, schema: type[Body]) -> Body:
    """Return the validated body."""
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        if not _has_openai_field(error):
            raise _first_error(error, schema) from None
    return _parse_without_openai_fields(content, schema)


def _first_error(error: ValidationError, schema: type[BaseModel]) -> ApiError:
    """Return the error to show: an unknown field of the body explains a field that is missing."""
    unknown = [str(details["loc"][0]) for details in error.errors() if _is_unknown(details)]
    if unknown:
        return unknown_field(unknown[0], _names(schema))
    return from_validation_error(error, FIELD_NAMES, CHILDREN)


def _is_unknown(details: Any) -> bool:
    return details["type"] == "extra_forbidden" and len(details["loc"]) == 1


def _has_openai_field(error: ValidationError) -> bool:
    known = schemas.NOT_OFFERED | schemas.NEUTRAL.keys()
    return any(_is_unknown(details) and details["loc"][0] in known for details in error.errors())


def _parse_without_openai_fields(content: bytes, schema: type[Body]) -> Body:
    """Return the body without OpenAI's fields that change nothing; the others are errors."""
    fields = orjson.loads(content)
    for name in list(fields):
        if name in schema.model_fields or not (name in schemas.NOT_OFFERED or name in schemas.NEUTRAL):
            continue
        value = fields.pop(name)
        if value is None or (name in schemas.NEUTRAL and value == schemas.NEUTRAL[name]):
            continue
        message = f"The field {name!r} is not supported by this server. Remove it."
        raise bad_request(message, name, "unsupported_field")
    return parse_body(orjson.dumps(fields), schema)


def check_supported(body: schemas.Strict, engine: Engine) -> None:
    """Raise an error for the first field that the engine cannot honor; values that change nothing are accepted."""
    for name in sorted(engine.unsupported & body.model_fields_set):
        if not _changes_nothing(name, getattr(body, name)):
            message = f"The engine {engine.name} does not support {name!r}. Remove it, or serve with another engine."
            raise bad_request(message, name, "unsupported_field")


DEFAULTS: dict[str, Any] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "n": 1,
    "tool_choice": "auto",
}


def _changes_nothing(name: str, value: Any) -> bool:
    if value is None or value is False or value == [] or value == {}:
        return True
    if name == "response_format":
        return bool(value.type == "text")
    if (name, value) in (("top_k", -1), ("tool_choice", "none")):
        return True
    return name in DEFAULTS and bool(value == DEFAULTS[name])
