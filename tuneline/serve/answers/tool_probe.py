"""Derives the syntax of tool calls from a chat template, by rendering marked calls and parsing them back."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tuneline.serve.answers.markup_reader import Markup, MarkupReader
from tuneline.serve.answers.probes import Call
from tuneline.serve.answers.tool_format import ToolFormat

Renderer = Callable[[Sequence[Call]], str | None]

FIRST, SECOND = "marker_function", "other_function"
KEYS, VALUES = ("marker_key", "other_key"), ("marker_value", "other_value")
MARKED: Call = (FIRST, dict(zip(KEYS, VALUES, strict=True)))
OTHER: Call = (SECOND, dict(zip(KEYS, VALUES, strict=True)))
EMPTY: Call = (FIRST, {})
TYPED: Call = (
    FIRST,
    {
        "text": 'A "quoted" line,\nwith <tags> and {braces}: ünï\'s',
        "number": 3,
        "fraction": -2.5,
        "flag": True,
        "list": [1, "x", False],
        "object": {"inner": {"list": [], "nothing": None}},
    },
)
"""Arguments of all types, for the proof that the derived syntax parses what the template writes."""

PLAIN: Call = (FIRST, {**TYPED[1], "text": "plain"})
"""The same without special characters: some templates write Python strings without escaping them."""


def derive_format(render: Renderer) -> ToolFormat | None:
    """Derive the syntax of tool calls; None if the template writes none, or in no known syntax.

    Args:
        render: Returns the text of tool calls as the template writes it, or None if it refuses them.
    """
    text = render([MARKED])
    if text is None:
        return None
    for derive in (_json_format, _named_json_format, _parameters_format, _python_format):
        derived = derive(text, render)
        if derived is None:
            continue
        derived = _with_several_calls(derived, render)
        typed = PLAIN if derived.kind == "python" else TYPED
        if all(_parses([call], derived, render) for call in (MARKED, EMPTY, typed)):
            return replace(derived, is_parallel=_parses([typed, OTHER], derived, render))
    return None


def _parses(calls: Sequence[Call], derived: ToolFormat, render: Renderer) -> bool:
    """Return whether the text of calls is parsed into these calls, and nothing else remains."""
    text = render(calls)
    if text is None:
        return False
    reader = MarkupReader(Markup(tool_format=derived), parse_tools=True)
    parts = [*reader.feed(text), *reader.flush()]
    parsed = [(call.name, json.loads(call.arguments)) for part in parts for call in part.tool_calls]
    return parsed == list(calls) and not any(part.text.strip() for part in parts)


def _json_format(text: str, render: Renderer) -> ToolFormat | None:
    """A JSON object with the name and the arguments, or a list of them."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        if match.start() > text.index(FIRST):
            return None
        try:
            value, end = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        item, is_list = (value[0], True) if isinstance(value, list) and len(value) == 1 else (value, False)
        if not isinstance(item, dict):
            continue
        inner = next((key for key, entry in item.items() if isinstance(entry, dict) and FIRST in entry.values()), "")
        call = item[inner] if inner else item
        name_key = next((key for key, entry in call.items() if entry == FIRST), None)
        arguments = [(key, type(entry)) for key, entry in call.items() if _as_object(entry) == MARKED[1]]
        if name_key is None or len(arguments) != 1:
            continue
        ((arguments_key, kind),) = arguments
        constants = {key: entry for key, entry in item.items() if key not in (name_key, arguments_key, inner)}
        return ToolFormat(
            "json",
            text[: match.start()],
            text[end:],
            is_list=is_list,
            name_key=name_key,
            arguments_key=arguments_key,
            wrapper_key=inner,
            constants=constants,
            arguments_as_text=kind is str,
        )
    return None


def _as_object(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _named_json_format(text: str, render: Renderer) -> ToolFormat | None:
    """The name, and then a JSON object of the arguments."""
    before, _, rest = text.partition(FIRST)
    position = rest.find("{")
    if position < 0 or KEYS[0] not in rest[position:]:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(rest, position)
    except ValueError:
        return _quoted_format(before, rest, position)
    if value != MARKED[1]:
        return None
    return ToolFormat("named_json", before, rest[end:], name_end=rest[:position])


def _quoted_format(before: str, rest: str, position: int) -> ToolFormat | None:
    """The name, and then an object with bare keys, whose texts stand between quote tokens."""
    entries = ",".join(rf"{key}:(?P=quote){value}(?P=quote)" for key, value in MARKED[1].items())
    pattern = entries.replace("(?P=quote)", "(?P<quote>[^\\w\\s]+)", 1)
    match = re.compile(rf"\{{{pattern}\}}").match(rest, position)
    if match is None:
        return None
    return ToolFormat("named_json", before, rest[match.end() :], name_end=rest[:position], quote=match["quote"])


def _parameters_format(text: str, render: Renderer) -> ToolFormat | None:
    """The name, and then each parameter between tags."""
    marks = (FIRST, KEYS[0], VALUES[0], KEYS[1], VALUES[1])
    pattern = "(.*?)".join(re.escape(mark) for mark in marks)
    match, empty = re.fullmatch(rf"(.*?){pattern}(.*)", text, re.S), render([EMPTY])
    if match is None or empty is None or empty.count(FIRST) != 1:
        return None
    before, head, middle, between, middle_again, tail = match.groups()
    if middle != middle_again or not middle.strip() or not before.strip():
        return None
    name_end = _whole_tags(_common_start(head, empty.partition(FIRST)[2]))
    parameter_open = head[len(name_end) :]
    if not parameter_open or not between.endswith(parameter_open):
        return None
    parameter_close = between.removesuffix(parameter_open)
    if not tail.startswith(parameter_close) or not parameter_close.strip():
        return None
    return ToolFormat(
        "parameters",
        before,
        tail.removeprefix(parameter_close),
        name_end=name_end,
        parameter_open=parameter_open,
        parameter_middle=middle,
        parameter_close=parameter_close,
    )


def _common_start(first: str, second: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[:length] if length is not None else min(first, second, key=len)


def _whole_tags(text: str) -> str:
    """Cut a text before a tag that is not complete."""
    position = text.rfind("<")
    return text[:position] if position > text.rfind(">") else text


def _python_format(text: str, render: Renderer) -> ToolFormat | None:
    """Python calls with named arguments, alone or in a list."""
    match = re.fullmatch(rf"(.*?)(\[?){FIRST}\({KEYS[0]}=.*?\)(\]?)(\W.*)?", text, re.S)
    if match is None or not match.group(1).strip():
        return None
    return ToolFormat("python", match.group(1), match.group(4) or "", is_list=bool(match.group(2)))


def _with_several_calls(derived: ToolFormat, render: Renderer) -> ToolFormat:
    """Add the texts between two calls and after the last one."""
    both = None if derived.is_list else render([MARKED, OTHER])
    if both is None or SECOND not in both:
        return derived
    if derived.kind == "json":
        between = both[_json_end(both, FIRST) : _json_start(both, SECOND)]
    elif derived.kind == "named_json":
        end = both.index("}", both.index(VALUES[1])) + 1 if derived.quote else _json_end(both, KEYS[0])
        between = both[end : both.index(SECOND)]
    else:
        first = both.index(VALUES[1]) + len(VALUES[1])
        between = both[first : both.index(SECOND)].removeprefix(derived.parameter_close)
    close = _whole_tags(_common_start(between, derived.close))
    if not close.strip():
        return derived
    return replace(derived, close=close, next_open=between[len(close) :], outer_close=derived.close[len(close) :])


def _json_start(text: str, mark: str) -> int:
    """Return the start of the outermost JSON object that contains a mark and no other function."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            _, end = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        if mark in text[match.start() : end]:
            return match.start()
    raise ValueError(f"{mark} is in no JSON object of {text!r}")


def _json_end(text: str, mark: str) -> int:
    _, end = json.JSONDecoder().raw_decode(text, _json_start(text, mark))
    return end
