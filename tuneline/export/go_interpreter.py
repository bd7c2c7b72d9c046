"""Interpreter of the subset of Go's text/template that our Modelfiles use, to render like Ollama without Ollama.

Texts are bytes, as in Go, where `slice` and `len` count bytes. Everything outside of the subset (pipes, `with`,
`break`, other functions) is rejected, so the result never differs from Go's (https://pkg.go.dev/text/template).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneline.errors import VerificationError

ACTION_PATTERN = re.compile(r"\{\{(?P<left>-\s)?(?P<body>(?:\"(?:\\.|[^\"\\])*\"|[^\"])*?)(?P<right>\s-)?\}\}", re.S)
WORD_PATTERN = re.compile(
    r'\s*(?:(?P<text>"(?:\\.|[^"\\])*")|(?P<number>\d+)|(?P<mark>:=|[=(),])|(?P<name>[.$]?[\w.]*))'
)
TRIMMED_CHARACTERS = " \t\r\n"


class GoTemplateError(VerificationError):
    """A template is outside of the supported subset, or Go would fail to execute it."""


@dataclass
class Node:
    """A node of a template: `text`, `print`, `if`, `range`, `template`, `declare` or `assign`."""

    kind: str
    words: list[str] = field(default_factory=list)
    """Words of the action, without its keyword."""

    text: bytes = b""
    """Output of a `text` node; name of a template or variable."""

    body: list["Node"] = field(default_factory=list)
    else_body: list["Node"] = field(default_factory=list)


def evaluate(template: str, data: Mapping[str, Any]) -> str:
    """Execute a template.

    Args:
        template: Text of the template.
        data: Value of `.`: texts, booleans, numbers, and lists of such mappings. Missing keys are empty, as with Go's
            option `missingkey=zero`, which Ollama sets.

    Raises:
        GoTemplateError: The template is invalid, or Go would fail to execute it.
    """
    return Template(template).execute(data)


class Template:
    """A parsed template with its nested definitions."""

    def __init__(self, text: str) -> None:
        self.defined: dict[bytes, list[Node]] = {}
        parts = _PartStream(_split(text))
        self.root, end = self._list(parts)
        if end:
            raise GoTemplateError(f"unexpected {{{{ {' '.join(end)} }}}}")

    def execute(self, data: Mapping[str, Any]) -> str:
        """Return the output for `data`."""
        out: list[bytes] = []
        _Execution(self, out).walk(self.root, _to_go_value(data), [("$", _to_go_value(data))])
        return b"".join(out).decode()

    def _list(self, parts: "_PartStream") -> tuple[list[Node], list[str]]:
        """Parse up to `end` or `else`; returns the nodes and the words of that action."""
        nodes: list[Node] = []
        for text, words in parts:
            if words is None:
                nodes.append(Node("text", text=text.encode()))
            elif words and words[0] in ("end", "else"):
                return nodes, words
            elif words:
                self._action(words, parts, nodes)
        return nodes, []

    def _action(self, words: list[str], parts: "_PartStream", nodes: list[Node]) -> None:
        first = words[0]
        if first == "define":
            self.defined[_unquote(words[1])], _ = self._list(parts)
        elif first in ("if", "range"):
            nodes.append(self._branch(first, words[1:], parts))
        elif first == "template":
            nodes.append(Node("template", words[2:], _unquote(words[1])))
        elif len(words) > 1 and words[1] in (":=", "="):
            nodes.append(Node("declare" if words[1] == ":=" else "assign", words[2:], first.encode()))
        else:
            nodes.append(Node("print", words))

    def _branch(self, kind: str, words: list[str], parts: "_PartStream") -> Node:
        node = Node(kind, words)
        node.body, end = self._list(parts)
        if end[:2] == ["else", "if"]:
            node.else_body = [self._branch("if", end[2:], parts)]
            return node
        if end[:1] == ["else"]:
            node.else_body, end = self._list(parts)
        if end != ["end"]:
            raise GoTemplateError(f"{{{{ {kind} {' '.join(words)} }}}} has no end")
        return node


class _PartStream:
    """Texts and actions in order; iteration continues where it stopped."""

    def __init__(self, parts: Iterator[tuple[str, list[str] | None]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[tuple[str, list[str] | None]]:
        return self._parts


def _split(template: str) -> Iterator[tuple[str, list[str] | None]]:
    position, trim = 0, False
    for match in ACTION_PATTERN.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip(TRIMMED_CHARACTERS) if trim else text
        yield (text.rstrip(TRIMMED_CHARACTERS) if match["left"] else text), None
        position, trim = match.end(), bool(match["right"])
        body = match["body"].strip()
        if not body.startswith("/*"):
            yield "", _words(body)
    rest = template[position:]
    if "{{" in rest:
        raise GoTemplateError(f"an action is not closed: {rest[rest.index('{{') :][:40]!r}")
    yield (rest.lstrip(TRIMMED_CHARACTERS) if trim else rest), None


def _words(body: str) -> list[str]:
    words, position = [], 0
    while position < len(body.rstrip()):
        match = WORD_PATTERN.match(body, position)
        if not match or match.end() == position or not match[0].strip():
            raise GoTemplateError(f"{body[position:][:40]!r} cannot be parsed")
        words.append(match[0].strip())
        position = match.end()
    return words


def _unquote(word: str) -> bytes:
    if not word.startswith('"'):
        raise GoTemplateError(f"{word} is not a quoted text")
    return str(json.loads(word)).encode()


def _to_go_value(value: Any) -> Any:
    """Convert a value to its Go representation: texts are bytes."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Mapping):
        return {name: _to_go_value(inner) for name, inner in value.items()}
    return (
        [_to_go_value(inner) for inner in value]
        if isinstance(value, Sequence) and not isinstance(value, bytes)
        else value
    )


Variables = list[tuple[str, Any]]


class _Execution:
    """One execution."""

    def __init__(self, template: Template, out: list[bytes]) -> None:
        self._defined, self._out = template.defined, out

    def walk(self, nodes: list[Node], dot: Any, variables: Variables) -> None:
        for node in nodes:
            getattr(self, f"_{node.kind}")(node, dot, variables)

    def _text(self, node: Node, dot: Any, variables: Variables) -> None:
        self._out.append(node.text)

    def _print(self, node: Node, dot: Any, variables: Variables) -> None:
        value = _Expression(node.words, dot, variables).value()
        self._out.append(value if isinstance(value, bytes) else str(value).encode())

    def _declare(self, node: Node, dot: Any, variables: Variables) -> None:
        variables.append((node.text.decode(), _Expression(node.words, dot, variables).value()))

    def _assign(self, node: Node, dot: Any, variables: Variables) -> None:
        name, value = node.text.decode(), _Expression(node.words, dot, variables).value()
        for i in range(len(variables) - 1, -1, -1):
            if variables[i][0] == name:
                variables[i] = (name, value)
                return
        raise GoTemplateError(f"undefined variable {name}")

    def _if(self, node: Node, dot: Any, variables: Variables) -> None:
        mark = len(variables)
        self.walk(node.body if _Expression(node.words, dot, variables).value() else node.else_body, dot, variables)
        del variables[mark:]

    def _range(self, node: Node, dot: Any, variables: Variables) -> None:
        mark = len(variables)
        values = _Expression(node.words, dot, variables).value() or []
        if not isinstance(values, list):
            raise GoTemplateError(f"range {' '.join(node.words)}: the value is not a list")
        for value in values:
            self.walk(node.body, value, variables)
            del variables[mark:]
        if not values:
            self.walk(node.else_body, dot, variables)
            del variables[mark:]

    def _template(self, node: Node, dot: Any, variables: Variables) -> None:
        value = _Expression(node.words, dot, variables).value()
        body = self._defined.get(node.text)
        if body is None:
            raise GoTemplateError(f'template "{node.text.decode()}" not defined')
        self.walk(body, value, [("$", value)])


class _Expression:
    """The words of an action: an operand, or a function with operands."""

    def __init__(self, words: list[str], dot: Any, variables: Variables) -> None:
        self._words, self._dot, self._variables, self._next = words, dot, variables, 0

    def value(self) -> Any:
        """Evaluate the words."""
        result = self._command()
        if self._next < len(self._words):
            raise GoTemplateError(f"unexpected {self._words[self._next]!r} in {' '.join(self._words)!r}")
        return result

    def _command(self) -> Any:
        word = self._words[self._next] if self._next < len(self._words) else ""
        if word in FUNCTIONS:
            self._next += 1
            operands = self._operands()
            return FUNCTIONS[word](*(operands if word in LAZY_FUNCTIONS else [operand() for operand in operands]))
        return self._operand()()

    def _operands(self) -> list[Callable[[], Any]]:
        operands = []
        while self._next < len(self._words) and self._words[self._next] != ")":
            operands.append(self._operand())
        return operands

    def _operand(self) -> Callable[[], Any]:
        if self._next >= len(self._words):
            raise GoTemplateError(f"{' '.join(self._words)!r} lacks an operand")
        word = self._words[self._next]
        self._next += 1
        if word == "(":
            return self._inner()
        value = self._plain(word)
        return lambda: value

    def _inner(self) -> Callable[[], Any]:
        """Read the words in parentheses; they are evaluated when called, for lazy functions."""
        start, depth = self._next, 1
        while depth:
            if self._next >= len(self._words):
                raise GoTemplateError(f"{' '.join(self._words)!r}: a parenthesis is not closed")
            depth += {"(": 1, ")": -1}.get(self._words[self._next], 0)
            self._next += 1
        words = self._words[start : self._next - 1]
        return lambda: _Expression(words, self._dot, self._variables).value()

    def _plain(self, word: str) -> Any:
        if word.startswith('"'):
            return _unquote(word)
        if word.isdigit():
            return int(word)
        if word in ("true", "false"):
            return word == "true"
        if word[0] not in ".$":
            raise GoTemplateError(f"function {word!r} is not supported")
        name, *fields = word.split(".")
        value = self._dot if word[0] == "." else self._variable(name)
        for field_name in filter(None, fields):
            if not isinstance(value, Mapping):
                raise GoTemplateError(f"can't evaluate field {field_name} in {word}")
            value = value.get(field_name, b"")
        return value

    def _variable(self, name: str) -> Any:
        for variable, value in reversed(self._variables):
            if variable == name:
                return value
        raise GoTemplateError(f"undefined variable {name}")


def _equal(first: Any, *others: Any) -> bool:
    if any(type(other) is not type(first) for other in others):
        raise GoTemplateError("incompatible types for comparison")
    return first in others


def _slice(text: bytes, low: int = 0, high: int | None = None) -> bytes:
    high = len(text) if high is None else high
    if not 0 <= low <= high <= len(text):
        raise GoTemplateError(f"slice {low}:{high} is out of range of {len(text)} bytes")
    return text[low:high]


def _and(*operands: Callable[[], Any]) -> Any:
    value = None
    for operand in operands:
        value = operand()
        if not value:
            return value
    return value


def _or(*operands: Callable[[], Any]) -> Any:
    value = None
    for operand in operands:
        value = operand()
        if value:
            return value
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "eq": _equal,
    "ne": lambda one, other: not _equal(one, other),
    "lt": lambda one, other: one < other,
    "gt": lambda one, other: one > other,
    "len": len,
    "slice": _slice,
}
LAZY_FUNCTIONS = ("and", "or")
"""Functions that stop evaluating at the deciding operand."""
