"""Write a chat template (`chat.TurnFormat`) as a template of Go's text/template, as executed by Ollama.

Separators are quoted constants, so whitespace, braces and quotes in them are preserved. `$last` is the role of the
previous turn. A turn that the chat template does not support calls an undefined template whose name is the reason:
Ollama then reports it as an error, instead of sending the model a prompt of unknown form.
"""

import json
import re

from tuneline.data.tokenization.template_compiler import Strip
from tuneline.export.template_analysis import ANSWER, START, TurnFormat

ONE_BYTE_SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f"
TWO_BYTE_SPACES = "\x85\xa0"
THREE_BYTE_SPACES = (
    "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""Whitespace characters of Python's `str.strip`, which chat templates call, by their length in UTF-8."""


def write_template(turns: TurnFormat) -> str:
    """Write the template."""
    lines = ['{{- $last := "" }}', "{{- range .Messages }}"]
    for number, role in enumerate(("system", "user", "assistant")):
        lines.append(f"{{{{- {'else ' if number else ''}if eq .Role {quote(role)} }}}}")
        lines += _turn(turns, role)
    lines += [
        "{{- else }}",
        f"{{{{- {_rejection('only the roles system, user and assistant are supported')} }}}}",
        "{{- end }}",
    ]
    lines += ["{{- end }}", *_answer(turns)]
    return "\n".join([*lines, *_definitions(turns)])


def quote(text: str) -> str:
    """Return a quoted Go constant; JSON escapes are a subset of Go's."""
    text = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _turn(turns: TurnFormat, role: str) -> list[str]:
    previous_roles = [last for last, next_role in turns.pieces if next_role == role]
    lines = []
    for number, last in enumerate(previous_roles):
        lines.append(f"{{{{- {'else ' if number else ''}if eq $last {quote(last)} }}}}")
        lines.append(f"{{{{- {quote(turns.pieces[last, role])} }}}}")
    reason = next((reason for (_, next_role), reason in turns.rejection_reasons.items() if next_role == role), "")
    rejection = f"{{{{- {_rejection(f'the chat template does not support this turn of the {role}', reason)} }}}}"
    lines = [*lines, "{{- else }}", rejection, "{{- end }}"] if previous_roles else [rejection]
    strip = turns.strips.get(role)
    lines.append(f"{{{{- template {quote(_name(strip))} .Content }}}}" if strip else "{{- .Content }}")
    lines.append(f"{{{{- $last = {quote(role)} }}}}")
    if role != "system" or turns.empty_system == "rendered" or not previous_roles:
        return lines
    empty = f"{{{{- {_rejection('remove the empty system message')} }}}}"
    else_lines = ["{{- else }}", empty] if turns.empty_system == "rejected" else []
    if turns.empty_system == "omitted" and previous_roles == [START]:
        else_lines = ["{{- else if $last }}", empty]
    return ["{{- if .Content }}", *lines, *else_lines, "{{- end }}"]


def _answer(turns: TurnFormat) -> list[str]:
    """Write the header of the answer; a conversation that ends with an answer is left open for continuation."""
    header = f"{{{{- {quote(turns.pieces['user', ANSWER])} }}}}"
    lines = ['{{- if eq $last "user" }}', header]
    if (START, "system") in turns.pieces:
        lines += ['{{- else if eq $last "system" }}', f"{{{{- {_rejection('a question is missing')} }}}}"]
    if not turns.prefill:
        rejection = _rejection("the chat template cannot continue an answer, so the last turn must be a question")
        lines += ['{{- else if eq $last "assistant" }}', f"{{{{- {rejection} }}}}"]
    return [*lines, "{{- end }}"]


def _rejection(*reasons: str) -> str:
    """Return a call of an undefined template, with an argument, which Ollama requires of all calls."""
    text = ": ".join(" ".join(reason.split()) for reason in reasons if reason)
    return f"template {quote(text[:160])} ."


def _name(strip: Strip) -> str:
    return strip[0] if strip[1] is None else f"{strip[0]} newlines"


def _definitions(turns: TurnFormat) -> list[str]:
    strips: dict[Strip, None] = {}
    for method, characters in turns.strips.values():
        if method == "strip":
            strips["rstrip", characters] = None
        strips[method, characters] = None
    return [line for strip in strips for line in _define(strip)]


def _define(strip: Strip) -> list[str]:
    """Define a template that removes one character at an end and calls itself, until no character is left to remove."""
    name, last = _name(strip), "{{- . }}"
    if strip[0] == "strip":
        last = f"{{{{- template {quote(_name(('rstrip', strip[1])))} . }}}}"
    cuts = [_cut(strip[0], 1, strip[1])] if strip[1] else [_cut(strip[0], size) for size in (1, 2, 3)]
    lines = [f"{{{{- define {quote(name)} }}}}"]
    for number, (test, rest) in enumerate(cuts):
        lines.append(f"{{{{- {'else ' if number else ''}if {test} }}}}")
        lines.append(f"{{{{- template {quote(name)} ({rest}) }}}}")
    return [*lines, "{{- else }}", last, "{{- end }}", "{{- end }}"]


def _cut(method: str, size: int, characters: str | None = None) -> tuple[str, str]:
    """Return a test for characters of `size` bytes at an end, and the text without one.

    Go templates have no subtraction: the length minus n is the length of the text without its first n bytes.
    """
    characters = characters or {1: ONE_BYTE_SPACES, 2: TWO_BYTE_SPACES, 3: THREE_BYTE_SPACES}[size]
    shorter = f"len (slice . {size})"
    end, rest = f"slice . 0 {size}", f"slice . {size}"
    if method == "rstrip":
        end, rest = f"slice . ({shorter})", f"slice . 0 ({shorter})"
    return f"and (gt (len .) {size - 1}) (eq ({end}) {' '.join(map(quote, characters))})", rest
