"""Tool calls and function schemas: converts every common notation to one JSON text; keys keep their order.

Chat templates render schemas in the order of their keys, and so does an inference server: sorted keys would give other
tokens.

A call keeps its function's name and arguments. `id` and `index` only link it to the result after it, and are dropped.
"""

import json
from typing import Any

from tuneline.errors import DataError


def normalize_tool_calls(value: Any) -> str:
    """Return calls as JSON of `[{"type": "function", "function": {"name", "arguments"}}]`.

    Args:
        value: One call or a list of calls, as JSON text or already parsed.

    Raises:
        DataError: The text is not valid JSON, a call has no name, or its arguments are not an object.
    """
    return _to_json([_normalize_call(call) for call in _as_list(_parse(value, "tool call"), "tool call")], "tool call")


def normalize_tools(value: Any) -> str:
    """Return function schemas as JSON of `[{"type": "function", "function": {...}}]`; "" if there are none.

    Raises:
        DataError: The text is not valid JSON, or a function has no name.
    """
    if not value:
        return ""
    schemas = [_normalize_tool(_parse(tool, "tool")) for tool in _as_list(_parse(value, "tool"), "tool")]
    return _to_json(schemas, "tool") if schemas else ""


def _normalize_call(call: Any) -> dict[str, Any]:
    function = _function(call, "tool call")
    arguments = _parse(function.get("arguments") or {}, "tool call")
    if not isinstance(arguments, dict):
        raise DataError(
            f"the arguments of a tool call must be an object, got {arguments!r:.60}.",
            "arguments of a tool call are not an object",
        )
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _normalize_tool(tool: Any) -> dict[str, Any]:
    return {"type": "function", "function": _function(tool, "tool")}


def _function(value: Any, kind: str) -> dict[str, Any]:
    """Return the object with the name: the value of `function`, or the value itself."""
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"a {kind} must be an object with a name, got {value!r:.60}.", f"{kind} without a name")
    return function


def _as_list(value: Any, kind: str) -> list[Any]:
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise DataError(
            f"a {kind} must be an object or a list of objects, got {value!r:.60}.", f"{kind} is not an object"
        )
    return value


def _parse(value: Any, kind: str) -> Any:
    """Parse JSON text; integers keep all their digits."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a {kind} is not valid JSON: {error}, in {value!r:.60}.", f"{kind} is not JSON") from None


def _to_json(value: Any, kind: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a {kind} cannot be written as JSON: {error}.", f"{kind} is not JSON") from None
