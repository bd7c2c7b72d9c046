"""Loss masks: the token ids of a conversation as its chat template renders it, and the token spans of its answers.

Text is split at added tokens and where an answer starts before it is encoded, because the prompt ends there at
inference. Tokenizers that prepend a space to every piece (SentencePiece) encode the text as a whole; token offsets then
locate the answers.
"""

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import render, unsupported_content
from tuneline.data.chat_template.render import THINK_CLOSE_TAG
from tuneline.data.chat_template.thinking import EmptyThinkingBlock
from tuneline.data.schema import Message
from tuneline.data.tokenizer.fast_encoder import Encoder
from tuneline.errors import SourceError, VerificationError


class AnswerSpan(NamedTuple):
    """The tokens `start` to `end` of an answer, including its stop token.

    `message` is the index of the message. `thinking_end` is the first token after the thinking block, -1 without one.
    `question` is the token span of the content before the answer, from which truncation removes tokens.
    `empty_block_end` is where an empty thinking block ends that the chat template inserts and that is not in the row.
    """

    message: int
    start: int
    end: int
    thinking_end: int = -1
    question: tuple[int, int] | None = None
    empty_block_end: int = -1

    @property
    def content_start(self) -> int:
        """The first token that the row contains: after an empty thinking block that the template inserts."""
        return max(self.start, self.empty_block_end)

    def loss_start(self, *, thinking: bool) -> int:
        """Return the first token with loss."""
        return self.content_start if thinking else max(self.content_start, self.thinking_end)


class TokenizedSequence(NamedTuple):
    """One example: `input_ids` [length], its answers, and the tokens with loss as ascending [start, end) spans."""

    example_id: str
    input_ids: list[int]
    answers: list[AnswerSpan]
    trained: list[tuple[int, int]]


class MissingStopTokenError(render.IncompatibleTemplateError, VerificationError):
    """An answer does not end with a stop token."""


@dataclass(frozen=True)
class ConversationEncoder:
    """Renders conversations with the tokenizer's chat template, encodes them and locates their answers."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    stop_ids: frozenset[int]
    empty_block: EmptyThinkingBlock | None = None

    def encode(
        self, messages: list[Message], tools: str, selection: render.AnswerSelection
    ) -> tuple[list[int], list[AnswerSpan]]:
        """Render a conversation with the chat template and encode it.

        Raises:
            IncompatibleTemplateError: The template refuses the conversation, rewrites earlier turns, omits content, or
                an answer has no stop token.
        """
        unsupported_content.check_tool_support(messages, tools, self._unsupported)
        rendered = render.render(messages, tools, self.tokenizer, selection)
        unsupported_content.check_thinking(messages, rendered, self.empty_block)
        ids, starts = self.encode_text(rendered.text, [answer.start for answer in rendered.answers])
        return ids, [self._answer_span(answer, rendered.text, messages, ids, starts) for answer in rendered.answers]

    @cached_property
    def _unsupported(self) -> list[str]:
        return unsupported_content.find_unsupported(self.tokenizer)

    def encode_text(self, text: str, split_points: list[int]) -> tuple[list[int], list[int]]:
        """Return the token ids, and the character at which each token starts."""
        backend = getattr(self.tokenizer, "_tokenizer", None)
        if backend is None:
            raise SourceError(
                "The base model's tokenizer does not report token offsets; a fast tokenizer is required. Add a "
                "tokenizer.json to the base model."
            )
        pieces = self.encoder.split(text, split_points)
        ids, starts, position = [], [], 0
        for piece, encoding in zip(pieces, backend.encode_batch(pieces, add_special_tokens=False), strict=True):
            ids += encoding.ids
            starts += [position + start for start, _ in encoding.offsets]
            position += len(piece)
        return ids, starts

    def _answer_span(
        self, rendered: render.RenderedAnswer, text: str, messages: list[Message], ids: list[int], starts: list[int]
    ) -> AnswerSpan:
        first, last = bisect_left(starts, rendered.start), bisect_left(starts, rendered.end)
        answer, content = text[rendered.start : rendered.end], messages[rendered.message]["content"]
        stops = [i for i in range(first, last) if ids[i] in self.stop_ids]
        if not stops:
            raise MissingStopTokenError(self._no_stop_message(answer))
        stop = stops[-1]
        if not messages[rendered.message]["tool_calls"]:  # text after the first stop token is not part of the answer
            content_end = bisect_left(starts, _content_end(content.strip(), text, rendered))
            stop = next((i for i in stops if i >= content_end), stop)
        block = self.empty_block.length_with_white_space(answer, content) if self.empty_block else 0
        tag = text.rfind(THINK_CLOSE_TAG, rendered.start + block, rendered.end)
        thinking_end = -1
        if tag >= 0:
            rest = text[tag + len(THINK_CLOSE_TAG) : rendered.end]
            thinking_end = bisect_left(starts, rendered.end - len(rest.lstrip()))
        block_end = _token_at(starts, rendered.start + block) if block else -1
        question = _question_span(rendered, text, messages, starts)
        return AnswerSpan(rendered.message, first, stop + 1, thinking_end, question, block_end)

    def _no_stop_message(self, answer: str) -> str:
        stop_tokens = ", ".join(repr(self.tokenizer.decode([i])) for i in sorted(self.stop_ids))
        return (
            f"The chat template does not end the assistant's turn with a stop token ({stop_tokens}); the turn ends "
            f"with {answer[-24:]!r}, so the model would not learn to stop."
        )


def _content_end(content: str, text: str, answer: render.RenderedAnswer) -> int:
    position = text.find(content, answer.start, answer.end)
    return position + len(content) if position >= 0 else answer.end


def _token_at(starts: list[int], character: int) -> int:
    """Return the first token that covers a character, entirely or partly."""
    i = bisect_left(starts, character)
    return i if starts[i : i + 1] == [character] else bisect_left(starts, starts[i - 1])


def _question_span(
    answer: render.RenderedAnswer, text: str, messages: list[Message], starts: list[int]
) -> tuple[int, int] | None:
    content = messages[answer.message - 1]["content"].strip() if answer.message else ""
    position = text.rfind(content, 0, answer.start) if content else -1
    return None if position < 0 else (bisect_left(starts, position), bisect_left(starts, position + len(content)))


def find_loss_spans(
    answers: list[AnswerSpan], messages: list[Message], length: int, train_on: str, *, thinking: bool
) -> list[tuple[int, int]]:
    """Return the token spans with loss.

    Args:
        answers: Answers of an example.
        messages: Messages of the example; `train: false` excludes a message.
        length: Number of tokens in the example.
        train_on: `assistant`, `last_assistant` or `all`.
        thinking: Whether thinking blocks have loss; empty blocks that the template inserts never do.
    """
    if train_on == "all":
        excluded = [
            (span.start, span.end if messages[span.message]["train"] is False else span.loss_start(thinking=thinking))
            for span in answers
        ]
        gaps = [(start, end) for start, end in excluded if start < end]
        bounds = [0, *itertools.chain.from_iterable(gaps), length]
        return [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if a < b]
    if train_on == "last_assistant":
        answers = answers[-1:]
    trained = [answer for answer in answers if messages[answer.message]["train"] is not False]
    spans = [(answer.loss_start(thinking=thinking), answer.end) for answer in trained]
    return [(a, b) for a, b in spans if a < b]


def stop_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that end generation."""
    return frozenset(i for i in (tokenizer.eos_token_id,) if i is not None)
