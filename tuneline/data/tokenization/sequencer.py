"""Sequencer: examples to token sequences; each example is rendered, encoded, masked and truncated independently.

Conversations use compiled templates; those that cannot be compiled are rendered one by one with the original chat
template. Both results are compared for the first examples and for a sample of the rest; if they differ, every example
is rendered with the original template.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.data import TokenizeConfig
from tuneline.data.chat_template import render, thinking
from tuneline.data.chat_template.render import THINK_CLOSE_TAG
from tuneline.data.schema import Message
from tuneline.data.tokenization import template_suggestions, truncation
from tuneline.data.tokenization.loss_mask import (
    AnswerSpan,
    ConversationEncoder,
    TokenizedSequence,
    find_loss_spans,
    stop_token_ids,
)
from tuneline.data.tokenization.template_compiler import CompiledTemplate, RolePattern
from tuneline.data.tokenizer import fast_encoder
from tuneline.errors import DataError, VerificationError

INPUT_COLUMNS = ("id", "source", "messages", "tools", "text", "label", "chosen")
NUM_VERIFIED_FIRST = 32
VERIFY_EVERY = 512
"""After the first examples, one of this many is compared with the original template."""

COUNTERS = (
    *("examples", "rendered_by_template", "overlong", "cut", "dropped", "made_by_split", "joined_at_answer"),
    *("empty_thoughts", "empty_thought_tokens"),
)
"""Names in `Sequencer.counts`; the last two count the template's empty thinking blocks and their tokens."""

Example = dict[str, Any]
Encoded = tuple[list[int], list[AnswerSpan]]
"""Ids and answers of an example."""


class CompiledTemplateMismatchError(VerificationError):
    """A compiled template produced different ids than the original template."""


class Sequencer:
    """Makes token sequences of examples; `counts` holds counters since the last call of `start`.

    Examples that the chat template does not support are refused. With `suggests_settings`, other settings are tried on
    them and the error names those that work. Errors name an example by its location (file:line) if `locations` has its
    id, otherwise by its first words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: TokenizeConfig,
        *,
        suggests_settings: bool = True,
        locations: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._suggests_settings = config, suggests_settings
        self._locations = {} if locations is None else locations
        self._tokenizer = tokenizer
        self._text_encoder = fast_encoder.build_encoder(tokenizer)
        self._conversation_encoder = ConversationEncoder(
            tokenizer, self._text_encoder, stop_token_ids(tokenizer), thinking.find_empty_block(tokenizer)
        )
        self._selection = _answer_selection(config.train_on, config.rewritten_history)
        self._compiled: CompiledTemplate | None = None
        if self._text_encoder.is_piecewise and tokenizer.chat_template:
            self._compiled = CompiledTemplate(self._conversation_encoder, self._selection)
        self.start()

    def start(self) -> None:
        """Reset the counters."""
        self._num_encoded = 0
        self.counts: dict[str, int] = Counter(dict.fromkeys(COUNTERS, 0))

    def disable_compiled_template(self) -> None:
        """Render every following example with the original template."""
        self._compiled = None

    @property
    def rendering(self) -> str:
        """How texts become ids: the renderer and the encoding engine."""
        renderer = "compiled template" if self._compiled else "template, example by example"
        return f"{renderer}, {self._text_encoder.engine}"

    def sequences(self, examples: list[Example]) -> Iterator[tuple[str, TokenizedSequence]]:
        """Yield (source, sequence) in order.

        Raises:
            DataError: An example is too long and `overlong` is `refuse`, or its kind has no answers.
            VerificationError: The template rewrites earlier turns, an answer has no stop token, or no token has loss.
        """
        parts = [part for example in examples for part in self._split_turns(example)]
        for example, encoded in zip(parts, self.encode_verified(parts), strict=True):
            self.counts["examples"] += 1
            for messages, ids, answers in self._truncate(example, encoded):
                yield example["source"], self._mask(example, messages, ids, answers)

    def encode_verified(self, examples: list[Example]) -> list[Encoded]:
        """Return ids and answers of examples; a sample of them is compared with the original template.

        Raises:
            CompiledTemplateMismatchError: The compiled template produced different ids.
            VerificationError: Training and inference would use different tokens.
        """
        encoded = self._encode_all(examples)
        for number, (example, result) in enumerate(zip(examples, encoded, strict=True), start=self._num_encoded):
            if number < NUM_VERIFIED_FIRST or number % VERIFY_EVERY == 0:
                self._verify(example, result)
        self._num_encoded += len(examples)
        return encoded

    def last_question_span(self, example: Example) -> tuple[int, int] | None:
        """Return the token span of the content before the last answer."""
        _, answers = self._conversation_encoder.encode(example["messages"], example["tools"], self._selection)
        return answers[-1].question

    def _split_turns(self, example: Example) -> Iterable[Example]:
        """Return the example, or one example per answer with `rewritten_history: each_turn`."""
        if self._config.rewritten_history != "each_turn" or example["text"]:
            return [example]
        return [{**example, "messages": messages} for messages in _each_turn(example["messages"])]

    def _encode_all(self, examples: list[Example]) -> list[Encoded]:
        """Encode examples in order: those with a compiled pattern in one batch, the others one by one."""
        patterns = [self._pattern(example) for example in examples]
        texts = [
            slot.fill(example["messages"])
            for example, pattern in zip(examples, patterns, strict=True)
            if pattern
            for slot in pattern.slots
        ]
        encoded = iter(self._text_encoder(texts))
        return [
            pattern.assemble(encoded) if pattern else self._encode_or_suggest(example)
            for example, pattern in zip(examples, patterns, strict=True)
        ]

    def _encode_or_suggest(self, example: Example) -> Encoded:
        """Encode an example with the original template; if that fails, name the row and the settings that work.

        Raises:
            IncompatibleTemplateError: The template does not support the example.
        """
        try:
            return self._encode(example)
        except render.IncompatibleTemplateError as error:
            if not self._suggests_settings:
                raise
            fault = error
        refused = template_suggestions.Attempt(
            "",
            self._tokenizer,
            self._conversation_encoder.stop_ids,
            self._config.rewritten_history,
            example["messages"],
        )
        suggestions = template_suggestions.suggest_settings(
            refused, lambda attempt: self._try_settings(attempt, example["tools"])
        )
        raise type(fault)(f"{fault} Affected row: {self._name(example)}. {suggestions}") from None

    def _name(self, example: Example) -> str:
        """Return the location of an example, or its source and first words."""
        location = self._locations.get(example["id"])
        return location or f"a row of {example['source']} that begins with {_first_words(example)!r}"

    def _try_settings(self, attempt: template_suggestions.Attempt, tools: str) -> None:
        """Encode a conversation under other settings, with the original template."""
        block = thinking.find_empty_block(attempt.tokenizer)
        encoder = ConversationEncoder(attempt.tokenizer, self._text_encoder, attempt.stop_ids, block)
        selection = _answer_selection(self._config.train_on, attempt.history)
        for messages in _each_turn(attempt.messages) if attempt.history == "each_turn" else [attempt.messages]:
            encoder.encode(messages, tools, selection)

    def _pattern(self, example: Example) -> RolePattern | None:
        if self._compiled is None or example["text"]:
            return None
        messages = example["messages"]
        if self._config.thinking == "mask" and any(THINK_CLOSE_TAG in message["content"] for message in messages):
            return None
        return self._compiled.pattern(messages, example["tools"])

    def _encode(self, example: Example) -> Encoded:
        if example["text"]:
            return self._encode_text(example["text"]), []
        self.counts["rendered_by_template"] += 1
        return self._conversation_encoder.encode(example["messages"], example["tools"], self._selection)

    def _encode_text(self, text: str) -> list[int]:
        """Encode a document with the tokenizer's start token, if it has one, and its end token."""
        ids = list(self._tokenizer(text)["input_ids"])
        end = self._tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _verify(self, example: Example, encoded: Encoded) -> None:
        """Compare ids and answers with those of the original template.

        Raises:
            VerificationError: The ids or the answers differ, or the prompt's ids are not a prefix of the example's.
        """
        if example["text"]:
            return
        ids, answers = encoded
        messages, tools = example["messages"], example["tools"]
        exact_ids, exact_answers = self._conversation_encoder.encode(messages, tools, self._selection)
        text = render.apply_chat_template(messages, tools, self._tokenizer)
        self.counts["joined_at_answer"] += self._tokenizer(text, add_special_tokens=False)["input_ids"] != exact_ids
        spans, exact_spans = (
            [(answer.message, answer.start, answer.end, answer.content_start) for answer in group]
            for group in (answers, exact_answers)
        )
        if ids != exact_ids or spans != exact_spans:
            raise CompiledTemplateMismatchError(
                "The compiled chat template produces different token ids than the original template for "
                f"{self._name(example)}."
            )
        if not self._text_encoder.is_piecewise:  # otherwise the prompt is encoded separately, as at inference
            self._verify_prompts(example, exact_ids, exact_answers)

    def _verify_prompts(self, example: Example, ids: list[int], answers: list[AnswerSpan]) -> None:
        for answer in answers:
            messages = example["messages"][: answer.message]
            prompt = render.apply_chat_template(messages, example["tools"], self._tokenizer, add_generation_prompt=True)
            if ids[: answer.start] != self._tokenizer(prompt, add_special_tokens=False)["input_ids"]:
                raise VerificationError(
                    f"The prompt's token ids are not a prefix of the example's token ids for {self._name(example)}, so "
                    "the tokens at inference would differ from those in training. Use a template whose generation "
                    "prompt ends at a token boundary."
                )

    def _truncate(self, example: Example, encoded: Encoded) -> list[truncation.EncodedConversation]:
        ids, answers = encoded
        max_length, policy = self._config.max_length, self._config.overlong
        messages = example["messages"]
        if len(ids) <= max_length or (example["text"] and self._config.packing == "wrapped"):
            return [(messages, ids, answers)]
        self.count_overlong(example, len(ids))
        if policy == "drop":
            conversations = list[truncation.EncodedConversation]()
        elif example["text"]:
            conversations = [([], part, []) for part in _truncate_text(ids, max_length, policy)]
        else:
            encode = self._conversation_encoder.encode
            conversations = truncation.truncate(
                messages, lambda part: encode(part, example["tools"], self._selection), policy, max_length
            )
        self.counts["cut" if conversations else "dropped"] += 1
        self.counts["made_by_split"] += max(len(conversations) - 1, 0)
        return conversations

    def count_overlong(self, example: Example, length: int) -> None:
        """Count an example that is too long.

        Raises:
            DataError: `overlong` is `refuse`.
        """
        self.counts["overlong"] += 1
        if self._config.overlong == "refuse":
            raise DataError(
                f"{self._name(example)} has {length} tokens, more than tokenize.max_length "
                f"{self._config.max_length}. Raise max_length, or set "
                "tokenize.overlong: drop, right, left, proportional or split."
            )

    def check_truncated_fraction(self) -> None:
        """Compare the fraction of examples that were truncated or dropped for their length with the recipe's limit.

        Raises:
            DataError: The fraction is larger.
        """
        changed, total = self.counts["cut"] + self.counts["dropped"], max(self.counts["examples"], 1)
        allowed = self._config.max_cut_fraction
        if changed / total > allowed:
            raise DataError(
                f"{changed} of {total} examples are longer than tokenize.max_length {self._config.max_length} and "
                f"would be truncated or dropped; tokenize.max_cut_fraction allows {allowed:.0%}. Raise one of the two."
            )

    def _mask(
        self, example: Example, messages: list[Message], ids: list[int], answers: list[AnswerSpan]
    ) -> TokenizedSequence:
        if example["text"]:
            return TokenizedSequence(example["id"], ids, [], [(0, len(ids))])
        thinking = self._config.thinking == "train"
        spans = find_loss_spans(answers, messages, len(ids), self._config.train_on, thinking=thinking)
        if not spans or (len(spans) == 1 and spans[0][1] <= 1):
            raise VerificationError(
                f"{self._name(example)} has no tokens with loss: none of its turns is trained. Remove it."
            )
        self.count_empty_thinking(answers)
        return TokenizedSequence(example["id"], ids, answers, spans)

    def count_empty_thinking(self, answers: list[AnswerSpan]) -> None:
        """Count the empty thinking blocks that the template inserted into answers."""
        lengths = [answer.content_start - answer.start for answer in answers if answer.content_start > answer.start]
        self.counts["empty_thoughts"] += len(lengths)
        self.counts["empty_thought_tokens"] += sum(lengths)


def _answer_selection(train_on: str, rewritten_history: str) -> render.AnswerSelection:
    return "last" if train_on == "last_assistant" or rewritten_history != "refuse" else "all"


def _each_turn(messages: list[Message]) -> list[list[Message]]:
    """Return the conversation up to each trained answer."""
    ends = [i + 1 for i, m in enumerate(messages) if m["role"] == "assistant" and m["train"] is not False]
    return [messages[:end] for end in ends]


def _first_words(example: Example) -> str:
    text = example["text"] or next((m["content"] for m in example["messages"] if m["role"] == "user"), "")
    return str(text)[:40]


def _truncate_text(ids: list[int], max_length: int, policy: str) -> list[list[int]]:
    if policy == "split":
        parts = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
        if len(parts[-1]) == 1:  # a single token has no context, so it could not be learned
            parts[-2:] = [parts[-2][:-1], [parts[-2][-1], *parts[-1]]]
        return parts
    return [ids[-max_length:]] if policy == "left" else [ids[: max_length - 1] + ids[-1:]]
