"""Compiled templates: a chat template is rendered once for each pattern of roles, and then only filled in.

The rendering of a pattern with marks in place of the contents is cut into pieces: fixed ids, and texts with slots for
contents. Pieces end at added tokens (which every tokenizer finds before it cuts text into words) and where an answer
begins (as the prompt ends there when a model answers), so the joined ids are those of the rendered text. What a
template does to a content is probed: nothing, or stripping white space. A content that holds a word which the template
looks for (`</think>`, say) is rendered by the template itself, as is every conversation with tools.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from tuneline.data.chat_template import jinja_ast, render, thinking
from tuneline.data.schema import Message, message
from tuneline.data.tokenization.loss_mask import AnswerSpan, ConversationEncoder

MAX_MESSAGES = 48
"""Messages; longer conversations are rare, and each length is a pattern of its own."""

PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
PROBES = ("plain {i}", '\n \n it\'s <b>{i}</b> & "so" {{{{ x }}}} — é你 \n \n')

Strip = tuple[str, str | None]
"""Name and argument of the method that a template calls on a content."""

NO_STRIP: Strip = ("", None)
STRIPS: tuple[Strip, ...] = (
    NO_STRIP,
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

    @cached_property
    def alone(self) -> int | None:
        """The message whose content is the whole text as it is, if it is that."""
        return self.contents[0][0] if self.fixed == ["", ""] and self.contents[0][1] == NO_STRIP else None

    def holds(self, message: int) -> bool:
        """Tell whether the content of a message is in it."""
        return any(number == message for number, _ in self.contents)

    def fill(self, messages: list[Message]) -> str:
        """Return the text for a conversation."""
        if self.alone is not None:
            return messages[self.alone]["content"]
        parts = [self.fixed[0]]
        for (i, strip), fixed in zip(self.contents, self.fixed[1:], strict=True):
            said = messages[i]["content"]
            parts += [said if strip is NO_STRIP else _stripped(said, strip), fixed]
        return "".join(parts)


TokenPosition = tuple[int, int]
"""A piece, and a number of tokens behind its beginning."""


class AnswerPosition(NamedTuple):
    """An answer in a pattern: its message, where it begins, where it ends behind its stop token, where a block ends."""

    message: int
    start: TokenPosition
    end: TokenPosition
    empty_block_end: TokenPosition | None = None


@dataclass
class RolePattern:
    """What a template makes of a sequence of roles.

    `pieces` are ids or slots in order. An empty thinking block of the template ends in front of white space, of which
    `behind_block` tells, given ids and a token, where it ends.
    """

    pieces: list[list[int] | Slot] = field(default_factory=list)
    answers: list[AnswerPosition] = field(default_factory=list)
    skip_block_margin: Callable[[list[int], int], int] = field(default=lambda _, start: start)

    @cached_property
    def slots(self) -> list[Slot]:
        """The pieces that are to be filled, in order."""
        return [piece for piece in self.pieces if isinstance(piece, Slot)]

    @cached_property
    def _fixed(self) -> list[list[int] | None]:
        return [None if isinstance(piece, Slot) else piece for piece in self.pieces]

    def assemble(self, encoded: Iterator[list[int]]) -> tuple[list[int], list[AnswerSpan]]:
        """Join ids: returns `input_ids` and the answers in them."""
        ids: list[int] = []
        begins = []
        for piece in self._fixed:
            begins.append(len(ids))
            ids += next(encoded) if piece is None else piece
        return ids, [self._answer(span, begins, ids) for span in self.answers]

    def _answer(self, span: AnswerPosition, begins: list[int], ids: list[int]) -> AnswerSpan:
        start, end = (begins[piece] + tokens for piece, tokens in (span.start, span.end))
        if span.empty_block_end is None:
            return AnswerSpan(span.message, start, end)
        piece, tokens = span.empty_block_end
        return AnswerSpan(span.message, start, end, empty_block_end=self.skip_block_margin(ids, begins[piece] + tokens))

    def add(self, piece: list[int] | Slot) -> TokenPosition:
        """Append a piece, joined with the fixed ids before it; returns where it begins."""
        if isinstance(piece, list) and self.pieces and isinstance(self.pieces[-1], list):
            before = len(self.pieces[-1])
            self.pieces[-1] = [*self.pieces[-1], *piece]
            return len(self.pieces) - 1, before
        self.pieces.append(piece)
        return len(self.pieces) - 1, 0


class CompiledTemplate:
    """The chat template of a tokenizer, compiled pattern by pattern as they are met."""

    def __init__(self, reader: ConversationEncoder, turns: render.AnswerSelection) -> None:
        self._tokenizer, self._encoder, self._stop_ids = reader.tokenizer, reader.encoder, reader.stop_ids
        self._block, self._turns = reader.empty_block, turns
        self._width = thinking.white_space_counter(self._tokenizer)
        self._patterns: dict[tuple[str, ...], RolePattern | None] = {}

    def pattern(self, messages: list[Message], tools: str) -> RolePattern | None:
        """Return the pattern of a conversation, or nothing where the template itself must render (or refuse) it."""
        if tools or len(messages) > MAX_MESSAGES:
            return None
        is_looked_for = self._is_looked_for
        for said in messages:
            content = said["content"]
            if said["tool_calls"] or not content or content.isspace() or is_looked_for(content):
                return None
        roles = tuple([said["role"] for said in messages])
        try:
            return self._patterns[roles]
        except KeyError:
            return self._patterns.setdefault(roles, self._compile_or_not(roles))

    @cached_property
    def _is_looked_for(self) -> Callable[[str], bool]:
        """Return a test for contents with a word that the template looks for, or with thoughts where it has some."""
        text = str(self._tokenizer.chat_template)
        looked_for = jinja_ast.keyword_matcher(text)
        return (
            (lambda said: render.THINK_CLOSE_TAG in said or looked_for(said))
            if render.THINK_CLOSE_TAG in text
            else looked_for
        )

    def _compile_or_not(self, roles: tuple[str, ...]) -> RolePattern | None:
        try:
            return self._compile(roles)
        except render.IncompatibleTemplateError:  # what the contents say may decide, so the real conversation is asked
            return None

    def _compile(self, roles: tuple[str, ...]) -> RolePattern | None:
        contents = [f"\ue000{i}\ue001" for i in range(len(roles))]
        rendered = render.render(_chat(roles, contents), "", self._tokenizer, self._turns)
        if [int(i) for i in PLACEHOLDER.findall(rendered.text)] != list(range(len(roles))):
            return None
        strips = [strip for i in range(len(roles)) if (strip := self._probe(roles, contents, i))]
        pattern = self._cut(rendered, strips) if len(strips) == len(roles) else None
        if pattern and all(self._fills_as_rendered(pattern, roles, probe) for probe in PROBES):
            return pattern
        return None

    def _probe(self, roles: tuple[str, ...], contents: list[str], i: int) -> Strip | None:
        """Find out how the template strips content `i`; nothing if it does something else with it."""
        padded = f"\n \n {contents[i]} \n \n"
        plain = render.apply_chat_template(_chat(roles, contents), "", self._tokenizer)
        text = render.apply_chat_template(
            _chat(roles, [*contents[:i], padded, *contents[i + 1 :]]), "", self._tokenizer
        )
        shown = {strip: plain.replace(contents[i], _stripped(padded, strip)) for strip in STRIPS}
        return next((strip for strip, expected in shown.items() if expected == text), None)

    def _cut(self, rendered: render.RenderedConversation, strips: list[Strip]) -> RolePattern | None:
        """Cut a rendering with marks into pieces; nothing where an answer has no stop token.

        Nothing, too, where an empty thinking block ends inside of a piece.
        """
        pattern = RolePattern(skip_block_margin=self._behind_block)
        answers = {turn.start: turn for turn in rendered.turns}
        position = 0
        for chunk in _chunks(rendered.text, sorted(answers)):
            turn = answers.get(position)
            for piece in self._encoder.pieces(chunk) if turn is None else ():
                pattern.add(self._piece(piece, strips))
            span = self._add(pattern, chunk, turn, self._length_of_block(turn, rendered.text), strips) if turn else None
            pattern.answers += [span] if span else []
            position += len(chunk)
        return pattern if len(pattern.answers) == len(rendered.turns) else None

    def _add(
        self, pattern: RolePattern, chunk: str, turn: render.RenderedAnswer, block: int, strips: list[Strip]
    ) -> AnswerPosition | None:
        """Add an answer whose first `block` characters are an empty thinking block; it ends at the first stop token."""
        first, stop, block_end, is_said = None, None, None, False
        position = 0
        for piece in self._encoder.pieces(chunk):
            made = self._piece(piece, strips)
            place = pattern.add(made)
            first = first or place
            if isinstance(made, Slot):
                is_said = is_said or made.holds(turn.message)
                stop = None if made.holds(turn.message) else stop
            elif made[-1] in self._stop_ids and position < turn.end - turn.start and not (stop and is_said):
                stop = place[0], place[1] + len(made)
            position += len(piece)
            if position == block and isinstance(made, list):
                block_end = place[0], place[1] + len(made)
        if first and stop and (block_end or not block):
            return AnswerPosition(turn.message, first, stop, block_end)
        return None

    def _length_of_block(self, turn: render.RenderedAnswer, text: str) -> int:
        return self._block.length(text[turn.start : turn.end], f"\ue000{turn.message}\ue001") if self._block else 0

    def _behind_block(self, ids: list[int], start: int) -> int:
        return thinking.skip_white_space(ids, start, self._block.margin, self._width) if self._block else start

    def _piece(self, piece: str, strips: list[Strip]) -> list[int] | Slot:
        parts = PLACEHOLDER.split(piece)
        if len(parts) == 1:
            return self._encoder.own([piece])[0]
        numbers = [int(i) for i in parts[1::2]]
        return Slot(parts[::2], [(i, strips[i]) for i in numbers])

    def _fills_as_rendered(self, pattern: RolePattern, roles: tuple[str, ...], probe: str) -> bool:
        """Compare with the template on contents of another kind."""
        chat = _chat(roles, [probe.format(i=i) for i in range(len(roles))])
        rendered = render.render(chat, "", self._tokenizer, self._turns)
        ids, _ = pattern.assemble(iter(self._encoder.own([slot.fill(chat) for slot in pattern.slots])))
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
