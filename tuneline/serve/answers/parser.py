"""Parses an answer while its tokens arrive: text, thoughts, tool calls and stop strings.

One parser serves whole and streamed answers, so both have the same content. Stop strings are searched in the text of
the whole answer, including thoughts and tool calls, as other servers do.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuneline.serve.answers import detokenizer, markup
from tuneline.serve.answers.markup_reader import Markup, MarkupReader, Part
from tuneline.serve.answers.parts import Delta, FinishReason, ToolCall
from tuneline.serve.answers.text_search import StopStrings
from tuneline.serve.answers.tool_format import ToolFormat
from tuneline.serve.engines.interface import Token

NUM_PROMPT_TOKENS = 64
"""Number of tokens at the end of a prompt in which an open thinking block is searched."""


def tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """Return how the chat template writes tool calls; None if it cannot be derived, so that tools are not supported."""
    return markup.find_markup(tokenizer).tool_format


def opens_thinking(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> bool:
    """Return whether a prompt ends inside of a thinking block that its generation prompt opened."""
    tags = markup.find_markup(tokenizer)
    return bool(tags.thinking_open) and prompt_end(tokenizer, prompt_ids).endswith(tags.thinking_open)


def prompt_end(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> str:
    """Return the text at the end of a prompt, with special tokens, without white space at the end."""
    ids = list(prompt_ids[-NUM_PROMPT_TOKENS:])
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)).rstrip()


class _Tokens(NamedTuple):
    """What an answer is parsed with: its tags, and its ids without text."""

    tags: Markup
    skipped: frozenset[int]
    """Special tokens that are part of no tag."""

    ends: frozenset[int]
    """Added tokens that have no text when they end the answer."""


_CACHE: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Markup, dict[tuple[bool, bool], _Tokens]]]"
_CACHE = WeakKeyDictionary()


def _tokens(tokenizer: PreTrainedTokenizerBase, *, reasoning: bool, tools: bool) -> _Tokens:
    whole = markup.find_markup(tokenizer)
    cached = _CACHE.get(tokenizer)
    if cached is None or cached[0] is not whole:
        cached = _CACHE[tokenizer] = (whole, {})
    if (reasoning, tools) not in cached[1]:
        tags = whole if reasoning else Markup(tool_format=whole.tool_format)
        tags = tags if tools else replace(tags, tool_format=None)
        special, texts = sorted(detokenizer.special_ids(tokenizer)), "\n".join(tags.texts())
        names = zip(special, tokenizer.convert_ids_to_tokens(special), strict=True)
        in_tags = frozenset(i for i, name in names if name and name in texts and i != tokenizer.eos_token_id)
        added = frozenset(tokenizer.added_tokens_decoder)
        cached[1][reasoning, tools] = _Tokens(tags, frozenset(special) - in_tags, added - in_tags)
    return cached[1][reasoning, tools]


class AnswerParser:
    """Converts the tokens of one answer to deltas."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        parse_tools: bool = False,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        parse_reasoning: bool = True,
    ) -> None:
        """Create a parser.

        Args:
            tokenizer: The tokenizer of the model.
            prompt_ids: Ids of the prompt, which may end inside of a thinking block.
            stop: Stop strings; none is part of the answer.
            parse_tools: Whether tool calls are parsed; otherwise they are content.
            tools: Tools of the request; their schemas determine the types of parameters in tags.
            parse_reasoning: Whether thinking blocks are parsed; false for text completions.
        """
        tokens = _tokens(tokenizer, reasoning=parse_reasoning, tools=parse_tools)
        functions = [tool.get("function", tool) for tool in tools or ()]
        self._reader = MarkupReader(
            tokens.tags,
            parse_tools=parse_tools,
            is_thinking=parse_reasoning and opens_thinking(tokenizer, prompt_ids),
            schemas={function["name"]: function.get("parameters") or {} for function in functions},
        )
        self._detokenizer = detokenizer.build_detokenizer(tokenizer, tokens.skipped)
        self._ends = tokens.ends
        self._stops = StopStrings(stop)
        self._tokens: list[Token] = []
        """Tokens without delta so far."""

        self._has_calls = False
        self.finished = False
        """Whether the answer has ended; further tokens are ignored, and the engine can be stopped."""

    def feed(self, token: Token) -> Delta | None:
        """Add a token; return the part of the answer that became certain, or None."""
        if self.finished:
            return None
        self._tokens.append(token)
        is_stop_token = token.finish == "stop" and token.id in self._ends
        text = self._stops.feed("" if is_stop_token else self._detokenizer.feed(token.id))
        parts = self._reader.feed(text)
        if self._stops.is_stopped:
            return self._end(parts, "stop")
        if token.finish is not None:
            rest = self._stops.feed(self._detokenizer.flush()) + self._stops.flush()
            return self._end([*parts, *self._reader.feed(rest)], token.finish)
        return self._delta(parts) if parts else None

    def finish(self, reason: FinishReason = "stop") -> Delta | None:
        """End an answer whose last token did not say so, such as one that was interrupted."""
        if self.finished:
            return None
        rest = self._stops.feed(self._detokenizer.flush()) + self._stops.flush()
        return self._end(self._reader.feed(rest), reason)

    def _end(self, parts: list[Part], reason: FinishReason) -> Delta:
        self.finished = True
        parts = [*parts, *self._reader.flush()]
        self._has_calls |= any(part.tool_calls for part in parts)
        return self._delta(parts, "tool_calls" if self._has_calls and reason == "stop" else reason)

    def _delta(self, parts: list[Part], finish: FinishReason | None = None) -> Delta:
        texts = {kind: "".join(part.text for part in parts if part.kind == kind) for kind in ("content", "reasoning")}
        calls: tuple[ToolCall, ...] = sum((part.tool_calls for part in parts), ())
        self._has_calls |= bool(calls)
        tokens, self._tokens = tuple(self._tokens), []
        return Delta(texts["content"], texts["reasoning"], calls, tokens, finish)


def parse_answer(parser: AnswerParser, tokens: Sequence[Token]) -> Delta:
    """Parse a complete answer and return it as one delta."""
    deltas = [delta for token in tokens if (delta := parser.feed(token))]
    if not parser.finished and (last := parser.finish()):
        deltas.append(last)
    return join(deltas)


def join(deltas: Sequence[Delta]) -> Delta:
    """Join the deltas of an answer."""
    return Delta(
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(call for delta in deltas for call in delta.tool_calls),
        tuple(token for delta in deltas for token in delta.tokens),
        deltas[-1].finish if deltas else None,
    )
