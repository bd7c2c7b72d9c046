"""Compiled chat templates: a template is rendered once per sequence of roles, and contents are filled in afterwards.

The rendering of a role sequence with placeholders for the contents is split into pieces: fixed ids, and texts with
slots for contents. Pieces end at added tokens (which every tokenizer finds before it splits text into words) and where
an answer starts (because the prompt ends there at inference), so the concatenated ids are those of the rendered text.
Probes determine how a template changes a content: not at all, or by stripping white space. A conversation is rendered
by the original template if it has tools, or if a content contains a keyword that the template searches for (such as
`</think>`).
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
"""Longer conversations are not compiled: they are rare, and each length is a separate pattern."""

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
    """A text to encode: fixed parts and, between them, contents (index of the message and how it is stripped)."""

    fixed: list[str]
    contents: list[tuple[int, Strip]]

    @cached_property
    def sole_content(self) -> int | None:
        """Index of the message whose unchanged content is the whole text, if there is one."""
        return self.contents[0][0] if self.fixed == ["", ""] and self.contents[0][1] == NO_STRIP else None

    def contains(self, message: int) -> bool:
        """Return whether the slot contains the content of a message."""
        return any(number == message for number, _ in self.contents)

    def fill(self, messages: list[Message]) -> str:
        """Return the text for a conversation."""
        if self.sole_content is not None:
            return messages[self.sole_content]["content"]
        parts = [self.fixed[0]]
        for (i, strip), fixed in zip(self.contents, self.fixed[1:], strict=True):
            content = messages[i]["content"]
            parts += [content if strip is NO_STRIP else _strip(content, strip), fixed]
        return "".join(parts)


TokenPosition = tuple[int, int]
"""Index of a piece, and the number of tokens after its start."""


class AnswerPosition(NamedTuple):
    """An answer in a pattern: its message, its start, its end after the stop token, and the end of an empty block."""

    message: int
    start: TokenPosition
    end: TokenPosition
    empty_block_end: TokenPosition | None = None


@dataclass
class RolePattern:
    """The compiled rendering of a sequence of roles.

    `pieces` are ids or slots in order. An empty thinking block of the template ends before white space;
    `skip_block_margin` returns the token after that white space, given the ids and the first token after the block.
    """

    pieces: list[list[int] | Slot] = field(default_factory=list)
    answers: list[AnswerPosition] = field(default_factory=list)
    skip_block_margin: Callable[[list[int], int], int] = field(default=lambda _, start: start)

    @cached_property
    def slots(self) -> list[Slot]:
        """The pieces to fill, in order."""
        return [piece for piece in self.pieces if isinstance(piece, Slot)]

    @cached_property
    def _fixed(self) -> list[list[int] | None]:
        return [None if isinstance(piece, Slot) else piece for piece in self.pieces]

    def assemble(self, encoded: Iterator[list[int]]) -> tuple[list[int], list[AnswerSpan]]:
        """Concatenate the ids of all pieces; returns `input_ids` and the answers."""
        ids: list[int] = []
        starts = []
        for piece in self._fixed:
            starts.append(len(ids))
            ids += next(encoded) if piece is None else piece
        return ids, [self._answer_span(position, starts, ids) for position in self.answers]

    def _answer_span(self, position: AnswerPosition, starts: list[int], ids: list[int]) -> AnswerSpan:
        start, end = (starts[piece] + tokens for piece, tokens in (position.start, position.end))
        if position.empty_block_end is None:
            return AnswerSpan(position.message, start, end)
        piece, tokens = position.empty_block_end
        block_end = self.skip_block_margin(ids, starts[piece] + tokens)
        return AnswerSpan(position.message, start, end, empty_block_end=block_end)

    def add(self, piece: list[int] | Slot) -> TokenPosition:
        """Append a piece, merged with preceding fixed ids; returns its start."""
        if isinstance(piece, list) and self.pieces and isinstance(self.pieces[-1], list):
            num_before = len(self.pieces[-1])
            self.pieces[-1] = [*self.pieces[-1], *piece]
            return len(self.pieces) - 1, num_before
        self.pieces.append(piece)
        return len(self.pieces) - 1, 0


class CompiledTemplate:
    """The chat template of a tokenizer; each sequence of roles is compiled on first use."""

    def __init__(self, conversation_encoder: ConversationEncoder, selection: render.AnswerSelection) -> None:
        self._tokenizer, self._encoder = conversation_encoder.tokenizer, conversation_encoder.encoder
        self._stop_ids, self._empty_block = conversation_encoder.stop_ids, conversation_encoder.empty_block
        self._selection = selection
        self._count_white_space = thinking.white_space_counter(self._tokenizer)
        self._patterns: dict[tuple[str, ...], RolePattern | None] = {}

    def pattern(self, messages: list[Message], tools: str) -> RolePattern | None:
        """Return the pattern of a conversation, or None if the original template must render (or refuse) it."""
        if tools or len(messages) > MAX_MESSAGES:
            return None
        has_keyword = self._has_keyword
        for turn in messages:
            content = turn["content"]
            if turn["tool_calls"] or not content or content.isspace() or has_keyword(content):
                return None
        roles = tuple([turn["role"] for turn in messages])
        try:
            return self._patterns[roles]
        except KeyError:
            return self._patterns.setdefault(roles, self._try_compile(roles))

    @cached_property
    def _has_keyword(self) -> Callable[[str], bool]:
        """A test for contents with a keyword of the template, or with a thinking block if the template handles it."""
        template = str(self._tokenizer.chat_template)
        matches = jinja_ast.keyword_matcher(template)
        if render.THINK_CLOSE_TAG not in template:
            return matches
        return lambda content: render.THINK_CLOSE_TAG in content or matches(content)

    def _try_compile(self, roles: tuple[str, ...]) -> RolePattern | None:
        try:
            return self._compile(roles)
        except render.IncompatibleTemplateError:  # may depend on the contents, so the original template decides
            return None

    def _compile(self, roles: tuple[str, ...]) -> RolePattern | None:
        contents = [f"\ue000{i}\ue001" for i in range(len(roles))]
        rendered = render.render(_chat(roles, contents), "", self._tokenizer, self._selection)
        if [int(i) for i in PLACEHOLDER.findall(rendered.text)] != list(range(len(roles))):
            return None
        strips = [strip for i in range(len(roles)) if (strip := self._find_strip(roles, contents, i))]
        pattern = self._split(rendered, strips) if len(strips) == len(roles) else None
        if pattern and all(self._fills_as_rendered(pattern, roles, probe) for probe in PROBES):
            return pattern
        return None

    def _find_strip(self, roles: tuple[str, ...], contents: list[str], i: int) -> Strip | None:
        """Return how the template strips content `i`; None if it changes the content in another way."""
        padded = f"\n \n {contents[i]} \n \n"
        plain = render.apply_chat_template(_chat(roles, contents), "", self._tokenizer)
        padded_contents = [*contents[:i], padded, *contents[i + 1 :]]
        text = render.apply_chat_template(_chat(roles, padded_contents), "", self._tokenizer)
        expected = {strip: plain.replace(contents[i], _strip(padded, strip)) for strip in STRIPS}
        return next((strip for strip, stripped in expected.items() if stripped == text), None)

    def _split(self, rendered: render.RenderedConversation, strips: list[Strip]) -> RolePattern | None:
        """Split a rendering with placeholders into pieces.

        Returns None if an answer has no stop token, or if an empty thinking block ends inside a piece.
        """
        pattern = RolePattern(skip_block_margin=self._skip_block_margin)
        answers = {answer.start: answer for answer in rendered.answers}
        position = 0
        for chunk in _chunks(rendered.text, sorted(answers)):
            answer = answers.get(position)
            if answer is None:
                for piece in self._encoder.pieces(chunk):
                    pattern.add(self._piece(piece, strips))
            elif span := self._add_answer(pattern, chunk, answer, self._block_length(answer, rendered.text), strips):
                pattern.answers.append(span)
            position += len(chunk)
        return pattern if len(pattern.answers) == len(rendered.answers) else None

    def _add_answer(
        self, pattern: RolePattern, chunk: str, answer: render.RenderedAnswer, block_length: int, strips: list[Strip]
    ) -> AnswerPosition | None:
        """Add an answer up to its first stop token; its first `block_length` characters are an empty thinking block."""
        first, stop, block_end, has_content = None, None, None, False
        position = 0
        for text in self._encoder.pieces(chunk):
            piece = self._piece(text, strips)
            start = pattern.add(piece)
            first = first or start
            if isinstance(piece, Slot):
                has_content = has_content or piece.contains(answer.message)
                stop = None if piece.contains(answer.message) else stop
            elif piece[-1] in self._stop_ids and position < answer.end - answer.start and not (stop and has_content):
                stop = start[0], start[1] + len(piece)
            position += len(text)
            if position == block_length and isinstance(piece, list):
                block_end = start[0], start[1] + len(piece)
        if first and stop and (block_end or not block_length):
            return AnswerPosition(answer.message, first, stop, block_end)
        return None

    def _block_length(self, answer: render.RenderedAnswer, text: str) -> int:
        if not self._empty_block:
            return 0
        return self._empty_block.length(text[answer.start : answer.end], f"\ue000{answer.message}\ue001")

    def _skip_block_margin(self, ids: list[int], start: int) -> int:
        if not self._empty_block:
            return start
        return thinking.skip_white_space(ids, start, self._empty_block.margin, self._count_white_space)

    def _piece(self, piece: str, strips: list[Strip]) -> list[int] | Slot:
        parts = PLACEHOLDER.split(piece)
        if len(parts) == 1:
            return self._encoder.encode_exact([piece])[0]
        numbers = [int(i) for i in parts[1::2]]
        return Slot(parts[::2], [(i, strips[i]) for i in numbers])

    def _fills_as_rendered(self, pattern: RolePattern, roles: tuple[str, ...], probe: str) -> bool:
        """Compare the pattern with the original template on other contents."""
        chat = _chat(roles, [probe.format(i=i) for i in range(len(roles))])
        rendered = render.render(chat, "", self._tokenizer, self._selection)
        ids, _ = pattern.assemble(iter(self._encoder.encode_exact([slot.fill(chat) for slot in pattern.slots])))
        chunks = _chunks(rendered.text, [answer.start for answer in rendered.answers])
        pieces = [piece for chunk in chunks for piece in self._encoder.pieces(chunk)]
        return ids == [token for encoded in self._encoder.encode_exact(pieces) for token in encoded]


def _chunks(text: str, starts: list[int]) -> list[str]:
    bounds = [0, *starts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def _strip(content: str, strip: Strip) -> str:
    name, characters = strip
    return str(getattr(content, name)(characters)) if name else content


def _chat(roles: tuple[str, ...], contents: list[str]) -> list[Message]:
    return [message(role, content) for role, content in zip(roles, contents, strict=True)]
