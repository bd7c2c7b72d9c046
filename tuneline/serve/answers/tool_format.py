"""Tool calls as text: the syntax of a chat template, and its parser.

A call is one of: a JSON object (Hermes, Qwen, Llama 3.1), or a JSON list of them (Mistral); a name and a JSON object
(DeepSeek, gpt-oss), or an object whose texts stand between quote tokens (Gemma 4); a name and parameters in tags
(Qwen3-Coder, GLM); Python calls (LFM2).
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tuneline.serve.answers.parts import ToolCall

Kind = Literal["json", "named_json", "parameters", "python"]
Schemas = Mapping[str, dict[str, Any]]
"""Name of a function -> JSON schema of its parameters."""


MAX_CLOSINGS = 32
"""Maximum number of closing texts inside of the strings of one call."""

_BARE_KEY = re.compile(r"([{,]\s*)([\w.$-]+)(\s*:)")

_NONE = re.compile(r"\bNone\b")


class IncompleteError(ValueError):
    """The text of a call is cut; more text may complete it."""


class MalformedError(ValueError):
    """A text is not a tool call."""


def flexible(text: str) -> str:
    """Return a regular expression for a text whose inner white space may vary; at its ends, one line break may."""
    words = [re.escape(word) for word in text.split()]
    start, end = (r"\n?" if text[edge].isspace() else "" for edge in (0, -1)) if words else ("", "")
    return start + r"\s*".join(words) + end


@dataclass(frozen=True)
class ToolFormat:
    """Syntax of the tool calls of a chat template."""

    kind: Kind
    open: str
    """Text before the first call; up to its name, or its JSON value. Empty if the answer starts with the JSON value."""

    close: str = ""
    """Text after each call, or after the list of calls."""

    next_open: str = ""
    """Text before each further call."""

    outer_close: str = ""
    """Text after the last call."""

    is_list: bool = False
    """Whether the calls are one list, in JSON or Python."""

    name_key: str = "name"
    arguments_key: str = "arguments"
    wrapper_key: str = ""
    """Key of the object with the name, inside of the JSON object of a call."""

    constants: dict[str, Any] = field(default_factory=dict)
    """Other entries of the JSON object of a call."""

    arguments_as_text: bool = False
    """Whether the arguments are JSON text in a string, instead of an object."""

    name_end: str = ""
    """Text between the name and the JSON arguments, or the first parameter."""

    quote: str = ""
    """Text around the texts of an object with bare keys; empty for JSON."""

    parameter_open: str = ""
    parameter_middle: str = ""
    parameter_close: str = ""
    is_parallel: bool = False
    """Whether an answer can contain several calls."""

    @cached_property
    def triggers(self) -> tuple[str, ...]:
        """Words that start a call in an answer; empty if only the start of the answer can be a call."""
        words = (text.split()[0] for text in (self.open, self.next_open) if text.split())
        return tuple(dict.fromkeys(words))

    @cached_property
    def closing(self) -> str:
        """Last word of the text after a call."""
        return self.close.split()[-1] if self.close.split() else ""

    def parse(self, text: str, schemas: Schemas, *, is_end: bool) -> tuple[list[ToolCall], int]:
        """Parse the calls at the start of a text.

        Args:
            text: Text that starts with a trigger.
            schemas: Schemas of the functions, which determine the types of parameters in tags.
            is_end: Whether the text is complete; otherwise a call must have its closing text.

        Returns:
            The calls, and the length of their text.

        Raises:
            IncompleteError: The call is not complete.
            MalformedError: The text is not a call.
        """
        start = self._head_length(text, is_end=is_end)
        if not self.closing:
            if not is_end:
                raise IncompleteError(text)
            return self._body(text[start:].strip(), schemas), len(text)
        pattern = re.compile(flexible(self.close))
        for number, close in enumerate(pattern.finditer(text, start)):
            if number == MAX_CLOSINGS:
                raise MalformedError(text)
            try:
                return self._body(text[start : close.start()], schemas), close.end()
            except IncompleteError:
                continue  # the closing text is inside of a string
        if not is_end:
            raise IncompleteError(text)
        return self._body(text[start:].strip(), schemas), len(text)  # the stop token took the place of the closing text

    def _head_length(self, text: str, *, is_end: bool) -> int:
        """Return the length of the text before a call."""
        if not self.triggers:
            return 0
        head = re.match(rf"\s*(?:{'|'.join(flexible(text) for text in (self.open, self.next_open) if text)})", text)
        if head is None:
            raise (IncompleteError if not is_end and len(text) < len(self.open) + 16 else MalformedError)(text)
        return head.end()

    def _body(self, body: str, schemas: Schemas) -> list[ToolCall]:
        try:
            return self._calls(body, schemas)
        except RecursionError:
            raise MalformedError("nested too deeply") from None

    def _calls(self, body: str, schemas: Schemas) -> list[ToolCall]:
        match self.kind:
            case "json":
                value = _parse_json(body)
                return [self._json_call(item) for item in (value if isinstance(value, list) else [value])]
            case "named_json":
                return [self._named_call(body)]
            case "python":
                return _python_calls(body)
            case "parameters":
                return [self._parameters_call(body, schemas)]

    def _json_call(self, value: Any) -> ToolCall:
        if self.wrapper_key and isinstance(value, dict):
            value = value.get(self.wrapper_key)
        if not isinstance(value, dict) or not isinstance(value.get(self.name_key), str):
            raise MalformedError(f"no {self.name_key}")
        return _call(value[self.name_key], value.get(self.arguments_key, {}))

    def _named_call(self, body: str) -> ToolCall:
        name, end, values = body.partition(self.name_end.split()[0] if self.name_end.split() else "{")
        if not end:
            raise IncompleteError(body)
        if self.name_end.split():
            values = re.sub(rf"\A\s*{flexible(' '.join(self.name_end.split()[1:]))}", "", values)
        else:
            values = end + values
        return _call(name.strip(), _parse_json(self._as_json(values) if self.quote else values))

    def _as_json(self, text: str) -> str:
        """Convert an object with bare keys and texts between quote tokens to JSON."""
        parts = text.split(self.quote)
        if len(parts) % 2 == 0:
            raise IncompleteError(text)
        for i, part in enumerate(parts):
            parts[i] = json.dumps(part) if i % 2 else _NONE.sub("null", _BARE_KEY.sub(r'\1"\2"\3', part))
        return "".join(parts)

    def _parameters_call(self, body: str, schemas: Schemas) -> ToolCall:
        head = re.match(rf"\s*([\w.:/-]+)\s*{flexible(self.name_end.strip())}", body)
        if head is None:
            raise MalformedError(body)
        name, rest = head.group(1), body[head.end() :]
        properties = schemas.get(name, {}).get("properties", {})
        following = rf"(?=\s*(?:{flexible(self.parameter_open)}|\Z))"
        parameter = re.compile(
            rf"\s*{flexible(self.parameter_open)}([^<>\n]{{1,256}}?){flexible(self.parameter_middle)}(.*?)"
            rf"{flexible(self.parameter_close)}{following}",
            re.S,
        )
        values, position = dict[str, Any](), 0
        while match := parameter.match(rest, position):
            key = match.group(1).strip()
            values[key] = _typed(match.group(2), properties.get(key))
            position = match.end()
        if rest[position:].strip():
            raise IncompleteError(body) if self.parameter_open.split()[0] in rest[position:] else MalformedError(body)
        return _call(name, values)


def _call(name: str, arguments: Any) -> ToolCall:
    if isinstance(arguments, str):
        arguments = _parse_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict) or not re.fullmatch(r"[\w.:/-]+", name):
        raise MalformedError(f"{name!r} is not a call with an object of arguments")
    try:
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MalformedError(str(error)) from None


def _parse_json(text: str) -> Any:
    text = text.strip()
    try:
        return json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated"):
            raise IncompleteError(text) from None
        raise MalformedError(str(error)) from None


def _typed(text: str, schema: Any) -> Any:
    """Return the value of a parameter: text if its schema says so, JSON otherwise if it is valid."""
    types = schema.get("type") if isinstance(schema, dict) else None
    types = types if isinstance(types, list) else [types]
    if types == ["string"]:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)
    return text if "string" in types and not isinstance(value, dict | list) and value is not None else value


_JSON_NAMES = {"true": True, "false": False, "null": None}


def _python_calls(body: str) -> list[ToolCall]:
    try:
        tree = ast.parse(body.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = str(error)
        is_cut = "unterminated" in message or "was never closed" in message or "unexpected EOF" in message
        raise (IncompleteError if is_cut else MalformedError)(message) from None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = []
    for node in nodes:
        if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
            raise MalformedError("not a call with named arguments")
        calls.append(_call(ast.unparse(node.func), {str(key.arg): _literal(key.value) for key in node.keywords}))
    if not calls:
        raise MalformedError("no call")
    return calls


def _literal(node: ast.expr) -> Any:
    """Return the value of a Python or JSON literal."""
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.Dict):
        return {str(_literal(key)): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(value) for value in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        raise MalformedError("an argument is not a literal") from None
