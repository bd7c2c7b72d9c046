"""Grammar of tool calls in the syntax of a chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.serve.answers.lark import Lark
from tuneline.serve.answers.tool_format import ToolFormat

Functions = Sequence[Mapping[str, Any]]

UNENFORCED = ("pattern", "format", "minLength", "maxLength")
"""Keywords of a text that is written without quotes, so that its end is only known by the tag after it."""


def calls_rule(lark: Lark, tools: ToolFormat, functions: Functions, *, several: bool) -> str:
    """Add the rule of one call, or of several; return its name.

    Args:
        lark: The grammar.
        tools: Syntax of the calls.
        functions: The functions that may be called.
        several: Whether several calls are allowed, if the template can write them.

    Raises:
        ValueError: The syntax cannot express a schema.
    """
    several = several and tools.is_parallel
    if tools.is_list:
        body = _json_list(lark, tools, functions, several) if tools.kind == "json" else ""
        body = body or _python_list(lark, functions, several)
        return lark.rule(f"{lark.literal(tools.open)} {body} {lark.literal(tools.close + tools.outer_close)}")
    body = _single(lark, tools, functions)
    close = lark.literal(tools.close)
    call = lark.rule(f"{lark.literal(tools.open)} {body} {close}")
    more = lark.rule(f"{lark.literal(tools.next_open)} {body} {close}") if several and tools.next_open else ""
    return lark.rule(f"{call} {more + '*' if more else ''} {lark.literal(tools.outer_close)}")


def _single(lark: Lark, tools: ToolFormat, functions: Functions) -> str:
    match tools.kind:
        case "json":
            return lark.json({"anyOf": [_json_call(tools, function) for function in functions]})
        case "named_json":
            name_end = lark.literal(tools.name_end)
            arguments = (
                [_quoted(lark, _parameters(f), tools.quote, f["name"]) for f in functions] if tools.quote else None
            )
            arguments = arguments or [lark.json(_parameters(f)) for f in functions]
            pairs = zip(functions, arguments, strict=True)
            calls = [f"{lark.literal(f['name'])} {name_end} {values}" for f, values in pairs]
        case "python":
            calls = [_python_call(lark, function) for function in functions]
        case "parameters":
            calls = [_parameters_call(lark, tools, function) for function in functions]
    return lark.rule(" | ".join(calls))


def _arguments(lark: Lark, tools: ToolFormat, function: Mapping[str, Any]) -> str:
    if tools.quote:
        return _quoted(lark, _parameters(function), tools.quote, function["name"])
    return lark.json(_parameters(function))


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    return {"type": "object", **parameters} if parameters else _object({})


def _json_call(tools: ToolFormat, function: Mapping[str, Any]) -> dict[str, Any]:
    if tools.arguments_as_text:
        raise ValueError("this model writes arguments as JSON inside of a string, which no grammar can enforce.")
    call = _object({tools.name_key: {"const": function["name"]}, tools.arguments_key: _parameters(function)})
    constants = {key: {"const": value} for key, value in tools.constants.items()}
    if tools.wrapper_key:
        return _object({**constants, tools.wrapper_key: call})
    return _object({**constants, **call["properties"]})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json_list(lark: Lark, tools: ToolFormat, functions: Functions, several: bool) -> str:
    items = {"anyOf": [_json_call(tools, function) for function in functions]}
    return lark.json({"type": "array", "items": items, "minItems": 1, **({} if several else {"maxItems": 1})})


def _python_list(lark: Lark, functions: Functions, several: bool) -> str:
    call = lark.rule(" | ".join(_python_call(lark, function) for function in functions))
    more = f'(", " {call})*' if several else ""
    return f'"[" {call} {more} "]"'


def _python_call(lark: Lark, function: Mapping[str, Any]) -> str:
    """Return a Python call whose arguments are JSON values, which the parser reads like Python's."""
    items = {key: f"{lark.literal(key + '=')} {lark.json(schema)}" for key, schema in _properties(function).items()}
    return f'{lark.literal(function["name"])} "(" {_in_order(lark, items, _required(function), ", ")} ")"'


def _parameters_call(lark: Lark, tools: ToolFormat, function: Mapping[str, Any]) -> str:
    items = {}
    for key, schema in _properties(function).items():
        head = lark.literal(tools.parameter_open + key + tools.parameter_middle)
        where = f"{function['name']}.{key}"
        items[key] = f"{head} {_value(lark, schema, tools.parameter_close, where)}"
    return f"{lark.literal(function['name'] + tools.name_end)} {_in_order(lark, items, _required(function), '')}"


def _value(lark: Lark, schema: Any, close: str, where: str) -> str:
    """Return a parameter in tags with its closing text: text as it is, other values as JSON."""
    schema = schema if isinstance(schema, dict) else {}
    if "enum" in schema and all(isinstance(value, str) for value in schema["enum"]):
        return f"({' | '.join(lark.literal(value) for value in schema['enum'])}) {lark.literal(close)}"
    if isinstance(schema.get("const"), str):
        return lark.literal(schema["const"] + close)
    types = schema.get("type")
    if "string" not in (types if isinstance(types, list) else [types]):
        return f"{lark.json(schema)} {lark.literal(close)}"
    unenforced = next((key for key in UNENFORCED if key in schema), None)
    if unenforced:
        raise ValueError(
            f"parameter {where} has {unenforced!r}, which cannot be enforced, because this model writes texts without "
            "quotes. Remove it, or use tool_choice auto."
        )
    return lark.text_until(close)


def _quoted(lark: Lark, schema: Any, quote: str, where: str) -> str:
    """Return a value of an object with bare keys, sorted as templates write them, and quote tokens around texts."""
    schema = schema if isinstance(schema, dict) else {}
    kind = schema.get("type")
    texts = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if texts is not None and all(isinstance(value, str) for value in texts):
        return f"({' | '.join(lark.literal(quote + value + quote) for value in texts)})"
    unenforced = next((key for key in UNENFORCED if key in schema), None)
    if kind == "string" and unenforced is None:
        return f"{lark.literal(quote)} {lark.text_until(quote)}"
    if kind == "array" and isinstance(schema.get("items"), dict) and not {"minItems", "maxItems"} & set(schema):
        item = lark.rule(_quoted(lark, schema["items"], quote, where))
        return f'"[" ({item} ("," {item})*)? "]"'
    if kind == "object":
        entries = sorted((schema.get("properties") or {}).items())
        items = {key: f"{lark.literal(key + ':')} {_quoted(lark, value, quote, where)}" for key, value in entries}
        return f'"{{" {_in_order(lark, items, set(schema.get("required") or ()), ",")} "}}"'
    if kind in ("integer", "number", "boolean", "null"):
        return lark.json(schema)
    raise ValueError(
        f"a parameter of {where} has the schema {schema!r:.80}, which the tool calls of this model cannot enforce. "
        "Give it a type without limits on texts and lists, or use tool_choice auto."
    )


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of the parameters, with the definitions that they may refer to."""
    parameters = function.get("parameters") or {}
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    properties = parameters.get("properties") or {}
    return {key: {**shared, **schema} if isinstance(schema, dict) else schema for key, schema in properties.items()}


def _required(function: Mapping[str, Any]) -> set[str]:
    return set((function.get("parameters") or {}).get("required") or ())


def _in_order(lark: Lark, items: Mapping[str, str], required: set[str], separator: str) -> str:
    """Return the items in order, of which those that are not required may be absent.

    Two rules per item, from the last one: the rest of the list after another item, and without one before it.
    """
    after = first = ""
    for key, item in reversed(list(items.items())):
        separated = f"{lark.literal(separator)} {item} {after}"
        alone = f"{item} {after}"
        if key in required:
            after, first = lark.rule(separated), lark.rule(alone)
        else:
            skip_after, skip_first = (rest or '""' for rest in (after, first))
            after, first = lark.rule(f"({separated}) | {skip_after}"), lark.rule(f"({alone}) | {skip_first}")
    return first
