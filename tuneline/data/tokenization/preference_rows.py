"""Pairs and labelled answers -> token rows, with the column names of trl's preference trainers.

A prompt is what a server would send; an answer is what follows it, with its stop token. Both answers of a pair have the
same prompt, so a cut of it is the same for both.
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
LABELLED_FEATURES = Features(
    {"prompt_ids": _IDS, "completion_ids": _IDS, "label": Value("bool"), "example_id": Value("string")}
)
INPUT_COLUMNS = ("id", "source", "messages", "tools", "text", "chosen", "rejected", "label")
PROMPT_FEATURES = Features({"prompt_ids": _IDS, "completion_ids": _IDS, "example_id": Value("string")})
ANSWERS_BY_KIND = {"preference": ("chosen", "rejected"), "kto": ("completion",), "prompt": ("completion",)}
FEATURES_BY_KIND = {"preference": PAIR_FEATURES, "kto": LABELLED_FEATURES, "prompt": PROMPT_FEATURES}
_ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")

Row = dict[str, Any]


def build_rows(examples: list[Example], sequencer: Sequencer, config: TokenizeConfig, kind: str) -> Iterator[Row]:
    """Yield the row of each example: `prompt_ids`, the ids of its answers, `label`, `example_id` and `source`.

    Raises:
        DataError: An example is longer than `max_length` and `overlong` says refuse, or its answers have different
            prompts.
    """
    names = ANSWERS_BY_KIND[kind]
    said = [_conversation(example, name) for example in examples for name in names]
    read = sequencer.encode_verified(said)
    for number, example in enumerate(examples):
        sequencer.counts["examples"] += 1
        found = read[number * len(names) : (number + 1) * len(names)]
        first = len(_prompt_of(example))
        own = [_own(ids, answers, first) for ids, answers in found]
        sequencer.count_empty_thinking([place for _, place in own])
        prompt, answers = _split(own, kind, example["source"])
        fitted = _fitted(prompt, answers, said[number * len(names)], sequencer, config)
        if fitted:
            columns = {f"{name}_ids": ids for name, ids in zip(names, fitted[1], strict=True)}
            about = {"label": example["label"], "example_id": example["id"], "source": example["source"]}
            yield {"prompt_ids": fitted[0], **columns, **about}


def to_sequences(row: Row) -> list[TokenizedSequence]:
    """Return what the model sees of a row: each answer behind the prompt, with the answer's tokens carrying loss."""
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
    """Return a row of any stage as tokens end to end: `input_ids`, `labels` and `lengths` of its segments.

    Each answer of a pair is a segment of its own, behind the prompt; the answers carry loss. Rows that are so already
    come back as they are.
    """
    if "input_ids" in row:
        return row
    answers = [row[name] for name in _ANSWER_COLUMNS if row.get(name) is not None]
    return concatenate_segments([(row["prompt_ids"], answer) for answer in answers])


def concatenate_segments(spans: list[tuple[list[int], list[int]]]) -> Row:
    """Lay prompts and answers end to end, each pair of them a segment."""
    ids, labels, lengths = list[int](), list[int](), list[int]()
    for prompt, answer in spans:
        ids += [*prompt, *answer]
        marks = [IGNORE_INDEX] * len(prompt) + answer
        labels += [IGNORE_INDEX, *marks[1:]]  # nothing of its own stands before the first token
        lengths.append(len(marks))
    return {"input_ids": ids, "labels": labels, "lengths": lengths}


def answer_names(row: Row) -> list[str]:
    """Say what each answer of a row is: chosen or rejected, desirable or not, or a reference."""
    if "completion_ids" not in row:
        return ["chosen", "rejected"]
    return ["reference" if row["label"] is None else "desirable" if row["label"] else "undesirable"]


class PreferenceRowWriter:
    """Rows on their way into a file."""

    def __init__(self, kind: str) -> None:
        self._open = ExitStack()
        self._writer = self._open.enter_context(corpus.RowWriter(FEATURES_BY_KIND[kind]))
        self._waiting: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row."""
        self._waiting.append(row)
        if len(self._waiting) == corpus.BATCH_ROWS:
            self._write()

    def rows(self, max_length: int, packing: object) -> Dataset:
        """Return the rows that were added; they share none, whatever the packing."""
        self._write()
        self._open.close()
        return self._writer.rows()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write({name: [row[name] for row in self._waiting] for name in self._writer.features})
        self._waiting = []


def _prompt_of(example: Example) -> list[schema.Message]:
    """Return what comes before the answer; of a labelled chat, all but its last message."""
    messages: list[schema.Message] = example["messages"]
    return messages if example["chosen"] else messages[:-1]


def _conversation(example: Example, name: str) -> Example:
    answer = example[name] if name in ("chosen", "rejected") else example["messages"][-1:]
    return {**example, "messages": [*_prompt_of(example), *answer], "chosen": [], "rejected": []}


def _own(ids: list[int], answers: list[AnswerSpan], first: int) -> tuple[list[int], AnswerSpan]:
    """Return ids, and the place in them from the first to the last of an example's own answers."""
    own = [answer for answer in answers if answer.message >= first]
    return ids, own[0]._replace(end=own[-1].end)


def _split(found: list[tuple[list[int], AnswerSpan]], kind: str, source: str) -> tuple[list[int], list[list[int]]]:
    """Return the prompt, and what is trained of each answer.

    An empty thinking block that the template wrote into every answer goes to the prompt, so that it carries no loss. Of
    a pair of which one answer has thoughts it tells the two apart, and stays. A prompt to be answered anew ends where a
    server's does.

    Raises:
        DataError: The answers of a pair have different prompts.
    """
    same = len({tuple(ids[: place.said]) for ids, place in found}) == 1
    prompts = [ids[: place.said if same and kind != "prompt" else place.start] for ids, place in found]
    if any(prompt != prompts[0] for prompt in prompts):
        raise DataError(f"{source}: the template shows the two answers of a pair different prompts.")
    return prompts[0], [ids[place.said if same else place.start : place.end] for ids, place in found]


def _fitted(
    prompt: list[int], answers: list[list[int]], longest: Example, sequencer: Sequencer, config: TokenizeConfig
) -> tuple[list[int], list[list[int]]] | None:
    if len(prompt) + max(map(len, answers)) <= config.max_length:
        return prompt, answers
    sequencer.count_overlong(longest, len(prompt) + max(map(len, answers)))
    fitted = None
    if config.overlong != "drop":
        content = sequencer.last_question_span(longest)
        fitted = truncation.truncate_pair(prompt, answers, content, config.overlong, config.max_length)
    sequencer.counts["cut" if fitted else "dropped"] += 1
    return fitted
