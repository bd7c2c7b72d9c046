"""Tool calls and functions' schemas, in whatever spelling -> one JSON text of each, with keys in the author's order.

Templates write schemas as they are given, and a server is given the author's: sorted keys would be other tokens.

Of a call its function's name and arguments are kept; `id` and `index` only tie it to its result, which follows it.
"""

import json
from typing import Any

from tuneline.errors import DataError


def normalize_tool_calls(value: Any) -> str:
    """Return calls as JSON of `[{"type": "function", "function": {"name", "arguments"}}]`.

    Args:
        value: One call or a list of them, as JSON text or as what it stands for.

    Raises:
        DataError: They are no JSON, a call has no name, or its arguments are no object.
    """
    return _compact([_call(call) for call in _as_list(_parsed(value, "tool call"), "tool call")], "tool call")


def normalize_tools(value: Any) -> str:
    """Return functions' schemas as JSON of `[{"type": "function", "function": {...}}]`; of none, "".

    Raises:
        DataError: They are no JSON, or a function has no name.
    """
    if not value:
        return ""
    schemas = [_tool(_parsed(tool, "tool")) for tool in _as_list(_parsed(value, "tool"), "tool")]
    return _compact(schemas, "tool") if schemas else ""


def _call(call: Any) -> dict[str, Any]:
    function = _function(call, "tool call")
    arguments = _parsed(function.get("arguments") or {}, "tool call")
    if not isinstance(arguments, dict):
        raise DataError(
            f"a tool call's arguments must be an object, got {arguments!r:.60}.", "tool call's arguments are no object"
        )
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tool(tool: Any) -> dict[str, Any]:
    return {"type": "function", "function": _function(tool, "tool")}


def _function(value: Any, what: str) -> dict[str, Any]:
    """Return the object with the name, whether it stands in `function` or is the value itself."""
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"a {what} must be an object with a name, got {value!r:.60}.", f"{what} without a name")
    return function


def _as_list(value: Any, what: str) -> list[Any]:
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise DataError(f"a {what} must be an object or a list of them, got {value!r:.60}.", f"{what} is no object")
    return value


def _parsed(value: Any, what: str) -> Any:
    """Read JSON text; integers keep all their digits."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a {what} is not JSON: {error}, in {value!r:.60}.", f"{what} is not JSON") from None


def _compact(value: Any, what: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a {what} cannot be written as JSON: {error}.", f"{what} is not JSON") from None
