"""Compiled templates: a chat template is rendered once for each pattern of roles, and then only filled in.

The rendering of a pattern with marks in place of the contents is cut into pieces: fixed ids, and texts with slots for
contents. Pieces end at added tokens (which every tokenizer finds before it cuts text into words) and where an answer
begins (as the prompt ends there when a model answers), so the joined ids are those of the rendered text. What a
template does to a content is probed: nothing, or stripping white space. A content that holds a word which the template
looks for (`</think>`, say) is rendered by the template itself, as is every conversation with tools.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from tuneline.data import jinja, render
from tuneline.data.encode import Encoder
from tuneline.data.schema import Message, message

LONGEST = 48
"""Messages; longer conversations are rare, and each length is a pattern of its own."""

MARK = re.compile("\ue000(\\d+)\ue001")
PROBES = ("plain {i}", '\n \n it\'s <b>{i}</b> & "so" {{{{ x }}}} — é你 \n \n')

Strip = tuple[str, str | None]
"""Name and argument of the method that a template calls on a content."""

STRIPS: tuple[Strip, ...] = (
    ("", None),
    ("strip", None),
    ("lstrip", None),
    ("rstrip", None),
    ("strip", "\n"),
    ("lstrip", "\n"),
    ("rstrip", "\n"),
)


@dataclass(frozen=True)
class Slot:
    """A text to encode: fixed parts and, between them, contents (message number and how it is stripped)."""

    fixed: list[str]
    contents: list[tuple[int, Strip]]

    def fill(self, messages: list[Message]) -> str:
        """Return the text for a conversation."""
        parts = [self.fixed[0]]
        for (i, strip), fixed in zip(self.contents, self.fixed[1:], strict=True):
            parts += [_stripped(messages[i]["content"], strip), fixed]
        return "".join(parts)


@dataclass
class Pattern:
    """What a template makes of a sequence of roles.

    `pieces` are ids or slots in order; `answers` holds, for each answer, its message, the piece it begins with, and
    the piece that ends with its stop token.
    """

    pieces: list[list[int] | Slot] = field(default_factory=list)
    answers: list[tuple[int, int, int]] = field(default_factory=list)

    def assemble(self, encoded: Iterator[list[int]]) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Join ids: returns `input_ids` and, for each answer, message, first token, and end after the stop token."""
        ids: list[int] = []
        bounds = [0]
        for piece in self.pieces:
            ids += piece if isinstance(piece, list) else next(encoded)
            bounds.append(len(ids))
        return ids, [(i, bounds[first], bounds[last + 1]) for i, first, last in self.answers]


class CompiledTemplate:
    """The chat template of a tokenizer, compiled pattern by pattern as they are met."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, stop_ids: frozenset[int], turns: render.Turns
    ) -> None:
        self._tokenizer, self._encoder, self._stop_ids, self._turns = tokenizer, encoder, stop_ids, turns
        self._patterns: dict[tuple[str, ...], Pattern | None] = {}

    def pattern(self, messages: list[Message], tools: str) -> Pattern | None:
        """Return the pattern of a conversation, or nothing where the template itself must render it.

        Raises:
            RewrittenHistoryError: The template rewrites earlier turns.
            DataError: The template refuses the roles.
        """
        if tools or len(messages) > LONGEST:
            return None
        for said in messages:
            if said["tool_calls"] or not said["content"].strip() or self._looked_for.search(said["content"]):
                return None
        roles = tuple(said["role"] for said in messages)
        if roles not in self._patterns:
            self._patterns[roles] = self._compile(roles)
        return self._patterns[roles]

    @cached_property
    def _looked_for(self) -> "re.Pattern[str]":
        return jinja.looked_for(str(self._tokenizer.chat_template))

    def _compile(self, roles: tuple[str, ...]) -> Pattern | None:
        contents = [f"\ue000{i}\ue001" for i in range(len(roles))]
        rendered = render.render(_chat(roles, contents), "", self._tokenizer, self._turns)
        if [int(i) for i in MARK.findall(rendered.text)] != list(range(len(roles))):
            return None
        strips = [strip for i in range(len(roles)) if (strip := self._probe(roles, contents, i))]
        pattern = self._cut(rendered, strips) if len(strips) == len(roles) else None
        if pattern and all(self._fills_as_rendered(pattern, roles, probe) for probe in PROBES):
            return pattern
        return None

    def _probe(self, roles: tuple[str, ...], contents: list[str], i: int) -> Strip | None:
        """Find out how the template strips content `i`; nothing if it does something else with it."""
        padded = f"\n \n {contents[i]} \n \n"
        plain = render.apply(_chat(roles, contents), "", self._tokenizer)
        text = render.apply(_chat(roles, [*contents[:i], padded, *contents[i + 1 :]]), "", self._tokenizer)
        shown = {strip: plain.replace(contents[i], _stripped(padded, strip)) for strip in STRIPS}
        return next((strip for strip, expected in shown.items() if expected == text), None)

    def _cut(self, rendered: render.Rendered, strips: list[Strip]) -> Pattern | None:
        """Cut a rendering with marks into pieces; nothing where an answer has no stop token."""
        pattern = Pattern()
        answers = {turn.start: turn for turn in rendered.turns}
        position = 0
        for chunk in _chunks(rendered.text, sorted(answers)):
            turn, first, stop = answers.get(position), len(pattern.pieces), None
            for piece in self._encoder.pieces(chunk):
                made = self._piece(piece, strips)
                if turn and position < turn.end and isinstance(made, list) and made[-1] in self._stop_ids:
                    stop = len(pattern.pieces)
                pattern.pieces.append(made)
                position += len(piece)
            if turn and stop is not None:
                pattern.answers.append((turn.message, first, stop))
        return pattern if len(pattern.answers) == len(rendered.turns) else None

    def _piece(self, piece: str, strips: list[Strip]) -> list[int] | Slot:
        parts = MARK.split(piece)
        if len(parts) == 1:
            return self._encoder.own([piece])[0]
        numbers = [int(i) for i in parts[1::2]]
        return Slot(parts[::2], [(i, strips[i]) for i in numbers])

    def _fills_as_rendered(self, pattern: Pattern, roles: tuple[str, ...], probe: str) -> bool:
        """Compare with the template on contents of another kind."""
        chat = _chat(roles, [probe.format(i=i) for i in range(len(roles))])
        rendered = render.render(chat, "", self._tokenizer, self._turns)
        slots = [piece for piece in pattern.pieces if isinstance(piece, Slot)]
        ids, _ = pattern.assemble(iter(self._encoder.own([slot.fill(chat) for slot in slots])))
        chunks = _chunks(rendered.text, [turn.start for turn in rendered.turns])
        pieces = [piece for chunk in chunks for piece in self._encoder.pieces(chunk)]
        return ids == [token for own in self._encoder.own(pieces) for token in own]


def _chunks(text: str, starts: list[int]) -> list[str]:
    bounds = [0, *starts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def _stripped(said: str, strip: Strip) -> str:
    name, characters = strip
    return str(getattr(said, name)(characters)) if name else said


def _chat(roles: tuple[str, ...], contents: list[str]) -> list[Message]:
    return [message(role, said) for role, said in zip(roles, contents, strict=True)]
