"""Examples -> token sequences: rendered, encoded, masked, and cut to length, each by itself.

Conversations go through compiled templates; what those cannot do goes through the template, one by one. Both ways are
compared on the first examples and on a sample of the rest; where they differ, everything goes through the template.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.data import TokenizeConfig
from tuneline.data.chat_template import render, thinking
from tuneline.data.schema import Message
from tuneline.data.tokenization import template_suggestions, truncation
from tuneline.data.tokenization.loss_mask import (
    THINK_CLOSE_TAG,
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
"""After the first, one example of so many is compared with the template."""

COUNTERS = (
    *("examples", "rendered_by_template", "overlong", "cut", "dropped", "made_by_split", "joined_at_answer"),
    *("empty_thoughts", "empty_thought_tokens"),
)
"""What is counted of examples; of empty thinking blocks that the template wrote, how many, and their tokens."""

Example = dict[str, Any]
Conversation = truncation.EncodedConversation


class CompiledTemplateMismatchError(VerificationError):
    """A compiled template gave other ids than the template itself."""


class Sequencer:
    """Makes token sequences of examples; `counts` says what happened to them since `start`.

    What a chat template does not fit is refused; where `advises`, settings are tried on it, and those that work named.
    Errors name an example by its place (file:line) where `places` has one for its id, else by how it begins.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: TokenizeConfig,
        *,
        advises: bool = True,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._advises, self._places = config, advises, {} if places is None else places
        self._tokenizer = tokenizer
        self._encoder = fast_encoder.build_encoder(tokenizer)
        self._reader = ConversationEncoder(
            tokenizer, self._encoder, stop_token_ids(tokenizer), thinking.find_empty_block(tokenizer)
        )
        self._turns = _turns(config.train_on, config.rewritten_history)
        self._compiled: CompiledTemplate | None = None
        if self._encoder.joins and tokenizer.chat_template:
            self._compiled = CompiledTemplate(self._reader, self._turns)
        self.start()

    def start(self) -> None:
        """Begin to count anew."""
        self._num_read = 0
        self.counts: dict[str, int] = Counter(dict.fromkeys(COUNTERS, 0))

    def disable_compiled_template(self) -> None:
        """Render by the template alone from now on."""
        self._compiled = None

    @property
    def rendering(self) -> str:
        """Say how texts become ids."""
        way = "compiled template" if self._compiled else "template, example by example"
        return f"{way}, {self._encoder.engine}"

    def sequences(self, examples: list[Example]) -> Iterator[tuple[str, TokenizedSequence]]:
        """Yield (source, sequence) in order.

        Raises:
            DataError: An example is too long and `overlong` says refuse, or is of a kind that has no answers.
            ProofError: The template rewrites earlier turns, no stop token ends an answer, or nothing carries loss.
        """
        parts = [part for example in examples for part in self._parts(example)]
        for example, made in zip(parts, self.encode_verified(parts), strict=True):
            self.counts["examples"] += 1
            for messages, ids, answers in self._fitting(example, made):
                yield example["source"], self._masked(example, messages, ids, answers)

    def encode_verified(self, examples: list[Example]) -> list[tuple[list[int], list[AnswerSpan]]]:
        """Return ids and answers of examples, some of them compared with the template.

        Raises:
            CompiledDiffersError: The compiled template gave other ids.
            ProofError: Training and answering would not see the same tokens.
        """
        read = self._read_all(examples)
        for number, (example, made) in enumerate(zip(examples, read, strict=True), start=self._num_read):
            if number < NUM_VERIFIED_FIRST or number % VERIFY_EVERY == 0:
                self._check(example, made)
        self._num_read += len(examples)
        return read

    def last_question_span(self, example: Example) -> tuple[int, int] | None:
        """Return the bounds, in tokens, of what was said last before the last answer."""
        return self._reader.read(example["messages"], example["tools"], self._turns)[1][-1].content

    def _parts(self, example: Example) -> Iterable[Example]:
        """Return the example, or one for each of its answers where the recipe asks for it."""
        if self._config.rewritten_history != "each_turn" or example["text"]:
            return [example]
        return [{**example, "messages": said} for said in _each_turn(example["messages"])]

    def _read_all(self, examples: list[Example]) -> list[tuple[list[int], list[AnswerSpan]]]:
        """Read examples in order: those that have a pattern all at once, the others one by one."""
        patterns = [self._pattern(example) for example in examples]
        texts = [
            slot.fill(example["messages"])
            for example, pattern in zip(examples, patterns, strict=True)
            if pattern
            for slot in pattern.slots
        ]
        encoded = iter(self._encoder(texts))
        return [
            pattern.assemble(encoded) if pattern else self._read_or_advise(example)
            for example, pattern in zip(examples, patterns, strict=True)
        ]

    def _read_or_advise(self, example: Example) -> tuple[list[int], list[AnswerSpan]]:
        """Read an example by the template itself; where that does not fit, say which row it is and what does.

        Raises:
            TemplateMisfitError: It does not fit.
        """
        try:
            return self._read(example)
        except render.IncompatibleTemplateError as error:
            if not self._advises:
                raise
            fault = error
        refused = template_suggestions.Attempt(
            "", self._tokenizer, self._reader.stop_ids, self._config.rewritten_history, example["messages"]
        )
        ways = template_suggestions.suggest_settings(refused, lambda attempt: self._attempt(attempt, example["tools"]))
        raise type(fault)(f"{fault} It is {self._name(example)}. {ways}") from None

    def _name(self, example: Example) -> str:
        """Say which row an example is."""
        place = self._places.get(example["id"])
        return place or f"a row of {example['source']} that begins {_beginning(example)!r}"

    def _attempt(self, attempt: template_suggestions.Attempt, tools: str) -> None:
        """Read a conversation under other settings, by the template itself."""
        block = thinking.find_empty_block(attempt.tokenizer)
        reader = ConversationEncoder(attempt.tokenizer, self._encoder, attempt.stop_ids, block)
        turns = _turns(self._config.train_on, attempt.history)
        for messages in _each_turn(attempt.messages) if attempt.history == "each_turn" else [attempt.messages]:
            reader.read(messages, tools, turns)

    def _pattern(self, example: Example) -> RolePattern | None:
        if self._compiled is None or example["text"]:
            return None
        messages = example["messages"]
        if self._config.thinking == "mask" and any(THINK_CLOSE_TAG in message["content"] for message in messages):
            return None
        return self._compiled.pattern(messages, example["tools"])

    def _read(self, example: Example) -> tuple[list[int], list[AnswerSpan]]:
        if example["text"]:
            return self._text(example["text"]), []
        self.counts["rendered_by_template"] += 1
        return self._reader.read(example["messages"], example["tools"], self._turns)

    def _text(self, text: str) -> list[int]:
        """Encode a document, between the tokens that mark its beginning (where the tokenizer has one) and its end."""
        ids = list(self._tokenizer(text)["input_ids"])
        end = self._tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _check(self, example: Example, made: tuple[list[int], list[AnswerSpan]]) -> None:
        """Compare with the template itself.

        Raises:
            ProofError: The ids or the answers differ, or the prompt's ids are no beginning of the example's.
        """
        if example["text"]:
            return
        ids, answers = made
        messages, tools = example["messages"], example["tools"]
        exact, exact_answers = self._reader.read(messages, tools, self._turns)
        whole = self._tokenizer(render.apply_chat_template(messages, tools, self._tokenizer), add_special_tokens=False)[
            "input_ids"
        ]
        self.counts["joined_at_answer"] += whole != exact
        spans, exact_spans = (
            [(a.message, a.start, a.end, a.said) for a in found] for found in (answers, exact_answers)
        )
        if ids != exact or spans != exact_spans:
            raise CompiledTemplateMismatchError(
                f"The compiled chat template gives other ids than the template itself for {self._name(example)}."
            )
        if not self._encoder.joins:  # else the prompt is encoded by itself, as it is when the model answers
            self._check_prompts(example, exact, exact_answers)

    def _check_prompts(self, example: Example, ids: list[int], answers: list[AnswerSpan]) -> None:
        for answer in answers:
            before = example["messages"][: answer.message]
            head = render.apply_chat_template(before, example["tools"], self._tokenizer, add_generation_prompt=True)
            if ids[: answer.start] != self._tokenizer(head, add_special_tokens=False)["input_ids"]:
                raise VerificationError(
                    f"The ids of the prompt are not the beginning of the example's for {self._name(example)}, so "
                    "the model would answer from other tokens than it was trained on. Set template to one whose "
                    "generation header ends where a token ends."
                )

    def _fitting(self, example: Example, made: tuple[list[int], list[AnswerSpan]]) -> list[Conversation]:
        ids, answers = made
        limit, policy = self._config.max_length, self._config.overlong
        messages = example["messages"]
        if len(ids) <= limit or (example["text"] and self._config.packing == "wrapped"):
            return [(messages, ids, answers)]
        self.count_overlong(example, len(ids))
        if policy == "drop":
            kept = list[Conversation]()
        elif example["text"]:
            kept = [([], part, []) for part in _cut_text(ids, limit, policy)]
        else:
            read = self._reader.read
            kept = truncation.truncate(messages, lambda said: read(said, example["tools"], self._turns), policy, limit)
        self.counts["cut" if kept else "dropped"] += 1
        self.counts["made_by_split"] += max(len(kept) - 1, 0)
        return kept

    def count_overlong(self, example: Example, length: int) -> None:
        """Count an example that is too long.

        Raises:
            DataError: The recipe says refuse.
        """
        self.counts["overlong"] += 1
        if self._config.overlong == "refuse":
            raise DataError(
                f"{self._name(example)} has {length} tokens, more than tokenize.max_length "
                f"{self._config.max_length}. Raise max_length, or set "
                "tokenize.overlong: drop, right, left, proportional or split."
            )

    def check_truncated_fraction(self) -> None:
        """Compare what was cut or dropped for its length with the recipe's bound.

        Raises:
            DataError: It is more.
        """
        changed, total = self.counts["cut"] + self.counts["dropped"], max(self.counts["examples"], 1)
        allowed = self._config.max_cut_fraction
        if changed / total > allowed:
            raise DataError(
                f"{changed} of {total} examples are longer than tokenize.max_length {self._config.max_length} and "
                f"would be cut or dropped; tokenize.max_cut_fraction allows {allowed:.0%}. Raise one of the two."
            )

    def _masked(
        self, example: Example, messages: list[Message], ids: list[int], answers: list[AnswerSpan]
    ) -> TokenizedSequence:
        if example["text"]:
            return TokenizedSequence(example["id"], ids, [], [(0, len(ids))])
        thinking = self._config.thinking == "train"
        spans = find_loss_spans(answers, messages, len(ids), self._config.train_on, thinking=thinking)
        if not spans or (len(spans) == 1 and spans[0][1] <= 1):
            raise VerificationError(
                f"{self._name(example)} carries no loss: none of its turns is trained. Leave it out."
            )
        self.count_empty_thinking(answers)
        return TokenizedSequence(example["id"], ids, answers, spans)

    def count_empty_thinking(self, answers: list[AnswerSpan]) -> None:
        """Count the empty thinking blocks that the template wrote into answers."""
        lengths = [answer.said - answer.start for answer in answers if answer.said > answer.start]
        self.counts["empty_thoughts"] += len(lengths)
        self.counts["empty_thought_tokens"] += sum(lengths)


def _turns(train_on: str, rewritten_history: str) -> render.AnswerSelection:
    return "last" if train_on == "last_assistant" or rewritten_history != "refuse" else "all"


def _each_turn(messages: list[Message]) -> list[list[Message]]:
    """Return the conversation up to each of its answers that is trained."""
    ends = [i + 1 for i, m in enumerate(messages) if m["role"] == "assistant" and m["train"] is not False]
    return [messages[:end] for end in ends]


def _beginning(example: Example) -> str:
    said = example["text"] or next((m["content"] for m in example["messages"] if m["role"] == "user"), "")
    return str(said)[:40]


def _cut_text(ids: list[int], limit: int, policy: str) -> list[list[int]]:
    if policy == "split":
        parts = [ids[i : i + limit] for i in range(0, len(ids), limit)]
        if len(parts[-1]) == 1:  # nothing of its own would stand before it, so it could not be learned
            parts[-2:] = [parts[-2][:-1], [parts[-2][-1], *parts[-1]]]
        return parts
    return [ids[-limit:]] if policy == "left" else [ids[: limit - 1] + ids[-1:]]
