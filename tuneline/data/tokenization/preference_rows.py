"""Preference rows: pairs and labeled answers as token rows, with the column names of trl's preference trainers.

The prompt is the text that a server would send, with the generation prompt; an answer is the text after it, including
the stop token. Both answers of a pair share one prompt, so both are truncated with the same prompt.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from datasets import Dataset, Features, List, Value

from tuneline.config.sections.data import TokenizeConfig
from tuneline.data import corpus, schema
from tuneline.data.schema import IGNORE_INDEX
from tuneline.data.tokenization import truncation
from tuneline.data.tokenization.loss_mask import AnswerSpan, TokenizedSequence
from tuneline.data.tokenization.sequencer import Example, Sequencer
from tuneline.errors import DataError

_IDS = List(Value("int32"))
PAIR_FEATURES = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS, "example_id": Value("string")})
LABELED_FEATURES = Features(
    {"prompt_ids": _IDS, "completion_ids": _IDS, "label": Value("bool"), "example_id": Value("string")}
)
INPUT_COLUMNS = ("id", "source", "messages", "tools", "text", "chosen", "rejected", "label")
PROMPT_FEATURES = Features({"prompt_ids": _IDS, "completion_ids": _IDS, "example_id": Value("string")})
ANSWERS_BY_KIND = {"preference": ("chosen", "rejected"), "kto": ("completion",), "prompt": ("completion",)}
FEATURES_BY_KIND = {"preference": PAIR_FEATURES, "kto": LABELED_FEATURES, "prompt": PROMPT_FEATURES}
_ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")

Row = dict[str, Any]


def build_rows(examples: list[Example], sequencer: Sequencer, config: TokenizeConfig, kind: str) -> Iterator[Row]:
    """Yield the row of each example: `prompt_ids`, the ids of its answers, `label`, `example_id` and `source`.

    Raises:
        DataError: An example is longer than `max_length` and `overlong` is `refuse`, or its answers have different
            prompts.
    """
    names = ANSWERS_BY_KIND[kind]
    conversations = [_conversation(example, name) for example in examples for name in names]
    encoded = sequencer.encode_verified(conversations)
    for number, example in enumerate(examples):
        sequencer.counts["examples"] += 1
        num_prompt_messages = len(_prompt_messages(example))
        completions = [
            _merge_answers(ids, answers, num_prompt_messages)
            for ids, answers in encoded[number * len(names) : (number + 1) * len(names)]
        ]
        sequencer.count_empty_thinking([answer for _, answer in completions])
        prompt, answers = _split_prompt(completions, kind, example["source"])
        fitted = _truncate(prompt, answers, conversations[number * len(names)], sequencer, config)
        if fitted:
            columns = {f"{name}_ids": ids for name, ids in zip(names, fitted[1], strict=True)}
            metadata = {"label": example["label"], "example_id": example["id"], "source": example["source"]}
            yield {"prompt_ids": fitted[0], **columns, **metadata}


def to_sequences(row: Row) -> list[TokenizedSequence]:
    """Return one sequence per answer of a row: the prompt and the answer, with loss on the answer's tokens."""
    prompt = row["prompt_ids"]
    answers = [row[name] for name in _ANSWER_COLUMNS if row.get(name) is not None]
    return [
        TokenizedSequence(row["example_id"], [*prompt, *ids], [], [(len(prompt), len(prompt) + len(ids))])
        for ids in answers
    ]


def build_row(example: Example, sequencer: Sequencer, config: TokenizeConfig, kind: str) -> Row:
    """Return the row of one example.

    Raises:
        DataError: It is longer than `max_length`, or its answers have different prompts.
    """
    return next(build_rows([example], sequencer, config, kind))


def flatten_row(row: Row) -> Row:
    """Return a row of any stage as concatenated tokens: `input_ids`, `labels` and the `lengths` of its segments.

    Each answer of a pair becomes a separate segment that starts with the prompt; the loss is on the answers. Rows that
    already have `input_ids` are returned unchanged.
    """
    if "input_ids" in row:
        return row
    answers = [row[name] for name in _ANSWER_COLUMNS if row.get(name) is not None]
    return concatenate_segments([(row["prompt_ids"], answer) for answer in answers])


def concatenate_segments(segments: list[tuple[list[int], list[int]]]) -> Row:
    """Concatenate pairs of prompt and answer ids; each pair is one segment."""
    ids, labels, lengths = list[int](), list[int](), list[int]()
    for prompt, answer in segments:
        ids += [*prompt, *answer]
        segment_labels = [IGNORE_INDEX] * len(prompt) + answer
        labels += [IGNORE_INDEX, *segment_labels[1:]]  # the first token of a segment has no context to predict it from
        lengths.append(len(segment_labels))
    return {"input_ids": ids, "labels": labels, "lengths": lengths}


def answer_names(row: Row) -> list[str]:
    """Return the role of each answer of a row: chosen or rejected, desirable or undesirable, or reference."""
    if "completion_ids" not in row:
        return ["chosen", "rejected"]
    return ["reference" if row["label"] is None else "desirable" if row["label"] else "undesirable"]


class PreferenceRowWriter:
    """Writes preference rows to a scratch file in batches."""

    def __init__(self, kind: str) -> None:
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(corpus.RowWriter(FEATURES_BY_KIND[kind]))
        self._pending: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row."""
        self._pending.append(row)
        if len(self._pending) == corpus.BATCH_ROWS:
            self._write()

    def rows(self, max_length: int, packing: object) -> Dataset:
        """Return the added rows; preference rows are never packed, so both arguments are ignored."""
        self._write()
        self._stack.close()
        return self._writer.rows()

    def _write(self) -> None:
        if self._pending:
            self._writer.write({name: [row[name] for row in self._pending] for name in self._writer.features})
        self._pending = []


def _prompt_messages(example: Example) -> list[schema.Message]:
    """Return the messages before the answer; of a labeled chat, all but the last message."""
    messages: list[schema.Message] = example["messages"]
    return messages if example["chosen"] else messages[:-1]


def _conversation(example: Example, name: str) -> Example:
    answer = example[name] if name in ("chosen", "rejected") else example["messages"][-1:]
    return {**example, "messages": [*_prompt_messages(example), *answer], "chosen": [], "rejected": []}


def _merge_answers(ids: list[int], answers: list[AnswerSpan], num_prompt_messages: int) -> tuple[list[int], AnswerSpan]:
    """Return the ids, and one span from the first to the last answer that is not part of the prompt."""
    completion = [answer for answer in answers if answer.message >= num_prompt_messages]
    return ids, completion[0]._replace(end=completion[-1].end)


def _split_prompt(
    completions: list[tuple[list[int], AnswerSpan]], kind: str, source: str
) -> tuple[list[int], list[list[int]]]:
    """Return the prompt, and the trained tokens of each answer.

    An empty thinking block that the template inserts into every answer becomes part of the prompt, so it has no loss.
    If only one answer of a pair has a thinking block, the block distinguishes the answers and stays in them. Prompts
    for generation end where the prompt of a server ends.

    Raises:
        DataError: The answers of a pair have different prompts.
    """
    is_shared = len({tuple(ids[: answer.content_start]) for ids, answer in completions}) == 1
    in_prompt = is_shared and kind != "prompt"
    prompts = [ids[: answer.content_start if in_prompt else answer.start] for ids, answer in completions]
    if any(prompt != prompts[0] for prompt in prompts):
        raise DataError(
            f"{source}: the chat template renders different prompts for the two answers of a pair. Use another "
            "template."
        )
    return prompts[0], [
        ids[answer.content_start if is_shared else answer.start : answer.end] for ids, answer in completions
    ]


def _truncate(
    prompt: list[int], answers: list[list[int]], conversation: Example, sequencer: Sequencer, config: TokenizeConfig
) -> tuple[list[int], list[list[int]]] | None:
    if len(prompt) + max(map(len, answers)) <= config.max_length:
        return prompt, answers
    sequencer.count_overlong(conversation, len(prompt) + max(map(len, answers)))
    truncated = None
    if config.overlong != "drop":
        question = sequencer.last_question_span(conversation)
        truncated = truncation.truncate_pair(prompt, answers, question, config.overlong, config.max_length)
    sequencer.counts["cut" if truncated else "dropped"] += 1
    return truncated
