"""Token ids of one example, exactly as the chat template says, and where its answers stand in them.

Encoding stops at added tokens and where an answer begins, since the prompt ends there when a model answers. Tokenizers
that put a space in front of every piece (SentencePiece) encode the text as a whole; their offsets tell the rest.
"""

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import render, unsupported_content
from tuneline.data.chat_template.thinking import EmptyThinkingBlock
from tuneline.data.schema import Message
from tuneline.data.tokenizer.fast_encoder import Encoder
from tuneline.errors import SourceError, VerificationError

THINK_CLOSE_TAG = "</think>"


class AnswerSpan(NamedTuple):
    """Tokens `start` to `end` answer, the stop token included; loss may begin at `thought`, after a thinking block.

    `content` are the bounds of what was said last before the answer; a cut takes tokens there. `block_end` is where an
    empty thinking block ends that the template wrote, and that no row says.
    """

    message: int
    start: int
    end: int
    thought: int = -1
    content: tuple[int, int] | None = None
    empty_block_end: int = -1

    @property
    def said(self) -> int:
        """Where that begins which the row says: behind an empty thinking block of the template."""
        return max(self.start, self.empty_block_end)

    def loss_start(self, *, thinking: bool) -> int:
        """Return where loss begins."""
        return self.said if thinking else max(self.said, self.thought)


class TokenizedSequence(NamedTuple):
    """One example: `input_ids` [length], its answers, and what carries loss as ascending [start, end) pairs."""

    example_id: str
    input_ids: list[int]
    answers: list[AnswerSpan]
    trained: list[tuple[int, int]]


class MissingStopTokenError(render.IncompatibleTemplateError, VerificationError):
    """An answer does not end with a token at which answering stops."""


@dataclass(frozen=True)
class ConversationEncoder:
    """What it takes to read conversations: a tokenizer, its encoder, and the ids that end an answer."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    stop_ids: frozenset[int]
    empty_block: EmptyThinkingBlock | None = None

    def read(
        self, messages: list[Message], tools: str, turns: render.AnswerSelection
    ) -> tuple[list[int], list[AnswerSpan]]:
        """Render a conversation by the template and encode it.

        Raises:
            TemplateMisfitError: The template refuses it, rewrites earlier turns, leaves something out, or an answer has
                no stop token.
        """
        unsupported_content.check_tool_support(messages, tools, self._left_out)
        rendered = render.render(messages, tools, self.tokenizer, turns)
        unsupported_content.check_thinking(messages, rendered, self.empty_block)
        ids, starts = self.encode(rendered.text, [turn.start for turn in rendered.turns])
        return ids, [self._answer(turn, rendered.text, messages, ids, starts) for turn in rendered.turns]

    @cached_property
    def _left_out(self) -> list[str]:
        return unsupported_content.find_unsupported(self.tokenizer)

    def encode(self, text: str, cuts: list[int]) -> tuple[list[int], list[int]]:
        """Return ids, and the character at which each begins."""
        backend = getattr(self.tokenizer, "_tokenizer", None)
        if backend is None:
            raise SourceError(
                "The base model's tokenizer does not tell where its tokens stand in a text. Give it a tokenizer.json."
            )
        pieces = self._pieces(text, cuts) if self.encoder.joins else [text]
        ids, starts, position = [], [], 0
        for piece, found in zip(pieces, backend.encode_batch(pieces, add_special_tokens=False), strict=True):
            ids += found.ids
            starts += [position + start for start, _ in found.offsets]
            position += len(piece)
        return ids, starts

    def _pieces(self, text: str, cuts: list[int]) -> list[str]:
        bounds = [0, *cuts, len(text)]
        chunks = [text[a:b] for a, b in itertools.pairwise(bounds) if a < b]
        return [piece for chunk in chunks for piece in self.encoder.pieces(chunk)]

    def _answer(
        self, turn: render.RenderedAnswer, text: str, messages: list[Message], ids: list[int], starts: list[int]
    ) -> AnswerSpan:
        first, last = bisect_left(starts, turn.start), bisect_left(starts, turn.end)
        answer, content = text[turn.start : turn.end], messages[turn.message]["content"]
        stops = [i for i in range(first, last) if ids[i] in self.stop_ids]
        if not stops:
            raise MissingStopTokenError(self._no_stop(answer))
        stop = stops[-1]
        if not messages[turn.message]["tool_calls"]:  # what a template writes behind the first stop token is no answer
            behind = bisect_left(starts, _end_of(content.strip(), text, turn))
            stop = next((i for i in stops if i >= behind), stop)
        block = self.empty_block.length_with_white_space(answer, content) if self.empty_block else 0
        thought = text.rfind(THINK_CLOSE_TAG, turn.start + block, turn.end)
        after = -1
        if thought >= 0:
            rest = text[thought + len(THINK_CLOSE_TAG) : turn.end]
            after = bisect_left(starts, turn.end - len(rest.lstrip()))
        said = _holding(starts, turn.start + block) if block else -1
        return AnswerSpan(turn.message, first, stop + 1, after, _content(turn, text, messages, starts), said)

    def _no_stop(self, answer: str) -> str:
        known = ", ".join(repr(self.tokenizer.decode([i])) for i in sorted(self.stop_ids))
        return (
            f"The chat template does not end the assistant's turn with a token at which answering stops ({known}); it "
            f"ends with {answer[-24:]!r}, so the model would not learn to stop."
        )


def _end_of(said: str, text: str, turn: render.RenderedAnswer) -> int:
    place = text.find(said, turn.start, turn.end)
    return place + len(said) if place >= 0 else turn.end


def _holding(starts: list[int], place: int) -> int:
    """Return the first token that holds the character at a place, whole or in part."""
    i = bisect_left(starts, place)
    return i if starts[i : i + 1] == [place] else bisect_left(starts, starts[i - 1])


def _content(
    turn: render.RenderedAnswer, text: str, messages: list[Message], starts: list[int]
) -> tuple[int, int] | None:
    said = messages[turn.message - 1]["content"].strip() if turn.message else ""
    place = text.rfind(said, 0, turn.start) if said else -1
    return None if place < 0 else (bisect_left(starts, place), bisect_left(starts, place + len(said)))


def find_loss_spans(
    answers: list[AnswerSpan], messages: list[Message], length: int, train_on: str, *, thinking: bool
) -> list[tuple[int, int]]:
    """Return the spans that carry loss.

    Args:
        answers: Answers of an example.
        messages: Its messages; `train: false` leaves one out.
        length: Tokens of the example.
        train_on: `assistant`, `last_assistant` or `all`.
        thinking: Whether thinking blocks carry loss; empty ones that the template wrote never do.
    """
    if train_on == "all":
        skipped = [
            (each.start, each.end if messages[each.message]["train"] is False else each.loss_start(thinking=thinking))
            for each in answers
        ]
        holes = [(start, end) for start, end in skipped if start < end]
        bounds = [0, *itertools.chain.from_iterable(holes), length]
        return [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if a < b]
    if train_on == "last_assistant":
        answers = answers[-1:]
    chosen = [answer for answer in answers if messages[answer.message]["train"] is not False]
    spans = [(answer.loss_start(thinking=thinking), answer.end) for answer in chosen]
    return [(a, b) for a, b in spans if a < b]


def stop_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids at which answering stops."""
    return frozenset(i for i in (tokenizer.eos_token_id,) if i is not None)
