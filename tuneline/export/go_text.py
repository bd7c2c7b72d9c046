"""Writes what a chat template does (`chat.Turns`) as a template of Go's text/template, as Ollama executes it.

Pieces are quoted constants, so that white space, braces and quotes in them are what they are. `$last` is the role of
the turn before. A turn that the chat template has no place for ends in a call of a template which is not defined, by
whose name Ollama then says why, instead of a prompt that the model never saw.
"""

import json
import re

from tuneline.data.tokenization.template_compiler import Strip
from tuneline.export.chat import ANSWER, START, TurnFormat

ONE_BYTE_SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f"
TWO_BYTE_SPACES = "\x85\xa0"
THREE_BYTE_SPACES = (
    "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What Python's `str.strip`, which chat templates call, takes for white space, by its length in UTF-8."""


def write_template(turns: TurnFormat) -> str:
    """Write the template."""
    lines = ['{{- $last := "" }}', "{{- range .Messages }}"]
    for number, role in enumerate(("system", "user", "assistant")):
        lines.append(f"{{{{- {'else ' if number else ''}if eq .Role {quote(role)} }}}}")
        lines += _turn(turns, role)
    lines += ["{{- else }}", f"{{{{- {_refusal('this model was not told how functions answer')} }}}}", "{{- end }}"]
    lines += ["{{- end }}", *_answer(turns)]
    return "\n".join([*lines, *_definitions(turns)])


def quote(text: str) -> str:
    """Return a constant of Go; JSON's escapes are among Go's."""
    plain = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]", _escape, plain)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _turn(turns: TurnFormat, role: str) -> list[str]:
    before = [last for last, then in turns.pieces if then == role]
    lines = []
    for number, last in enumerate(before):
        lines.append(f"{{{{- {'else ' if number else ''}if eq $last {quote(last)} }}}}")
        lines.append(f"{{{{- {quote(turns.pieces[last, role])} }}}}")
    why = next((why for (_, then), why in turns.why_not.items() if then == role), "")
    refusal = f"{{{{- {_refusal(f'the chat template has no place for this turn of the {role}', why)} }}}}"
    lines = [*lines, "{{- else }}", refusal, "{{- end }}"] if before else [refusal]
    how = turns.strips.get(role)
    lines.append(f"{{{{- template {quote(_name(how))} .Content }}}}" if how else "{{- .Content }}")
    lines.append(f"{{{{- $last = {quote(role)} }}}}")
    if role != "system" or turns.empty_system == "kept" or not before:
        return lines
    empty = f"{{{{- {_refusal('leave an empty system message out')} }}}}"
    otherwise = ["{{- else }}", empty] if turns.empty_system == "refused" else []
    if turns.empty_system == "none" and before == [START]:
        otherwise = ["{{- else if $last }}", empty]
    return ["{{- if .Content }}", *lines, *otherwise, "{{- end }}"]


def _answer(turns: TurnFormat) -> list[str]:
    """Write the header of the answer; a conversation that ends with an answer leaves it open, to go on."""
    header = f"{{{{- {quote(turns.pieces['user', ANSWER])} }}}}"
    lines = ['{{- if eq $last "user" }}', header]
    if (START, "system") in turns.pieces:
        lines += ['{{- else if eq $last "system" }}', f"{{{{- {_refusal('a question is missing')} }}}}"]
    if not turns.prefill:
        refusal = _refusal("the chat template lets no answer go on, so the last turn must be a question")
        lines += ['{{- else if eq $last "assistant" }}', f"{{{{- {refusal} }}}}"]
    return [*lines, "{{- end }}"]


def _refusal(*reasons: str) -> str:
    """Return a call of a template that is not defined; with an argument, as Ollama reads those of all calls."""
    text = ": ".join(" ".join(reason.split()) for reason in reasons if reason)
    return f"template {quote(text[:160])} ."


def _name(strip: Strip) -> str:
    return strip[0] if strip[1] is None else f"{strip[0]} newlines"


def _definitions(turns: TurnFormat) -> list[str]:
    lines, done = list[str](), set[Strip]()
    for how, characters in turns.strips.values():
        wanted: list[Strip] = [("rstrip", characters), ("strip", characters)] if how == "strip" else [(how, characters)]
        for strip in wanted:
            if strip not in done:
                done.add(strip)
                lines += _define(strip)
    return lines


def _define(strip: Strip) -> list[str]:
    """Define a template that cuts one character off and calls itself with the rest, until there is none to cut."""
    name, last = _name(strip), "{{- . }}"
    if strip[0] == "strip":
        last = f"{{{{- template {quote(_name(('rstrip', strip[1])))} . }}}}"
    cuts = [_cut(strip[0], 1, strip[1])] if strip[1] else [_cut(strip[0], size) for size in (1, 2, 3)]
    lines = [f"{{{{- define {quote(name)} }}}}"]
    for number, (test, rest) in enumerate(cuts):
        lines.append(f"{{{{- {'else ' if number else ''}if {test} }}}}")
        lines.append(f"{{{{- template {quote(name)} ({rest}) }}}}")
    return [*lines, "{{- else }}", last, "{{- end }}", "{{- end }}"]


def _cut(how: str, size: int, characters: str | None = None) -> tuple[str, str]:
    """Return a test for characters of `size` bytes at an end, and what is left without one.

    Go has no subtraction: the length less n is that of the text without its first n bytes.
    """
    characters = characters or {1: ONE_BYTE_SPACES, 2: TWO_BYTE_SPACES, 3: THREE_BYTE_SPACES}[size]
    shorter = f"len (slice . {size})"
    end, rest = f"slice . 0 {size}", f"slice . {size}"
    if how == "rstrip":
        end, rest = f"slice . ({shorter})", f"slice . 0 ({shorter})"
    return f"and (gt (len .) {size - 1}) (eq ({end}) {' '.join(map(quote, characters))})", rest
