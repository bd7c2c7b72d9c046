"""Contamination check: finds exam questions and held-out examples in the training examples.

An exam question is found `exact` if a training example holds all its words in a row, and `ngram` if it holds 13 of them
in a row (Brown et al. 2020, arXiv:2005.14165, appendix C). Of a held-out example, the last question with its answer is
compared: `exact` if a training example ends with the same words, so that the two differ only in case or punctuation,
`ngram` as above. A run of 13 words that occurs in more than 10 training examples (the threshold of that paper) is
boilerplate, for example an instruction shared by all rows or a stock answer, and does not count. Exact copies count
regardless of their number. Memory is bounded: evaluation sets are indexed in portions, and the training rows stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from tuneline.config.sections.data import BOILERPLATE_ROWS, HELD_OUT
from tuneline.data import corpus, file_check, ngrams
from tuneline.data.benchmarks import lm_eval, multiple_choice
from tuneline.data.mixture.ngram_index import NGRAM_WORDS, EvaluationSet, Hits, ItemHashes, NgramIndex
from tuneline.data.ngrams import NO_ROW, HashedTexts
from tuneline.identity import Located, Manifest

MAX_INDEX_WORDS = 2**21
"""Words of evaluation sets per index, 24 bytes each. The training rows are read once per index."""

MAX_BOILERPLATE_SHOWN = 5
"""Runs of boilerplate that are kept as text per evaluation set."""

CONTAMINATION_FEATURES = Features(
    {"benchmark": Value("string"), "item": Value("string"), "kind": Value("string"), "example_id": Value("string")}
)
"""One row per item found. `kind` is exact or ngram; `example_id` is the first training example that holds the item."""


@dataclass(frozen=True)
class ContaminationResult:
    """Items found in the training examples, their counts by evaluation set, and some runs of boilerplate as text."""

    rows: Dataset
    counts: dict[str, dict[str, int]]
    boilerplate: list[dict[str, Any]]


def find_contamination(
    train: Dataset, validation: Dataset, exams: Manifest, boilerplate_rows: int = BOILERPLATE_ROWS
) -> ContaminationResult:
    """Find the items of all evaluation sets in the training examples.

    Args:
        train: Rows of `MIXED`; copies of an example count once.
        validation: Rows of `MIXED`.
        exams: Exams and lm-eval tasks whose questions are compared.
        boilerplate_rows: An n-gram in more training examples than this is boilerplate.

    Returns:
        Rows of `CONTAMINATION_FEATURES` in the order of the evaluation sets and their items. For each evaluation set,
        the numbers of items found `exact` and `ngram` (each item counts once), of items that share only `boilerplate`,
        and of all `items`. For the first runs of boilerplate: `benchmark`, `words`, and the number of training `rows`
        that hold them.
    """
    evaluation_sets: list[EvaluationSet] = [
        *(_ExamItems(exam.name, *_read_items(exam)) for exam in exams.items),
        _HeldOutExamples(validation),
    ]
    counts = {each.name: {"exact": 0, "ngram": 0, "boilerplate": 0, "items": 0} for each in evaluation_sets}
    boilerplate: dict[str, dict[int, dict[str, Any]]] = {each.name: {} for each in evaluation_sets}
    with corpus.RowWriter(CONTAMINATION_FEATURES) as writer:
        for index in _indexes(evaluation_sets):
            for texts in ngrams.hash_texts(_heads_and_tails(train)):
                index.scan(texts)
            for evaluation_set, texts in index.texts():
                hits = index.find(evaluation_set, texts, boilerplate_rows)
                writer.write(_columns(evaluation_set, texts, hits, train))
                _count(counts[evaluation_set.name], hits)
                _collect_boilerplate(boilerplate[evaluation_set.name], evaluation_set, texts, hits, index)
            del index  # before the next is built: each takes tens of megabytes
    runs = [run for by_hash in boilerplate.values() for run in by_hash.values()]
    return ContaminationResult(writer.rows(), counts, runs)


class _ExamItems:
    matches_anywhere = True

    def __init__(self, name: str, ids: list[str], texts: list[str]) -> None:
        self.name, self._ids, self._texts = name, ids, texts

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]:
        return ngrams.hash_texts((number, "", text) for number, text in enumerate(self._texts[start:stop], start))

    def ids(self, numbers: list[int]) -> list[str]:
        return [self._ids[number] for number in numbers]

    def text(self, number: int) -> str:
        return self._texts[number]


def _read_items(exam: Located) -> tuple[list[str], list[str]]:
    """Return the ids and the texts of an exam's questions, or of the documents of lm-eval tasks."""
    if lm_eval.is_lm_eval_benchmark(exam):
        file_check.check_unchanged(exam)
        documents = lm_eval.read_document_texts(exam)
        return [id_ for id_, _ in documents], [text for _, text in documents]
    by_subject = multiple_choice.read_exam(exam).test
    questions = [question for subject in by_subject.values() for question in subject]
    return [question.id() for question in questions], [_identifying_text(question) for question in questions]


def _identifying_text(question: multiple_choice.Question) -> str:
    """Return a question, with its choices if it is too short to identify it ("Which is true?")."""
    if len(ngrams.split_words(question.text)) >= ngrams.MIN_QUESTION_WORDS:
        return question.text
    return " ".join((question.text, *question.choices))


class _HeldOutExamples:
    matches_anywhere = False
    name = HELD_OUT

    def __init__(self, validation: Dataset) -> None:
        self._rows = validation

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]:
        rows = self._rows if stop is None else self._rows.select(range(start, stop))
        return ngrams.hash_texts((start + number, "", tail) for number, _, tail in _heads_and_tails(rows))

    def ids(self, numbers: list[int]) -> list[str]:
        return _ids(self._rows, numbers)

    def text(self, number: int) -> str:
        return next(tail for _, _, tail in _heads_and_tails(self._rows.select([number])))


def _indexes(evaluation_sets: list[EvaluationSet]) -> Iterator[NgramIndex]:
    parts, num_words = list[ItemHashes](), 0
    for evaluation_set in evaluation_sets:
        for texts in evaluation_set.texts():
            parts.append(ItemHashes(evaluation_set, texts))
            num_words += len(texts)
            if num_words >= MAX_INDEX_WORDS:
                yield NgramIndex(parts)
                parts, num_words = [], 0
    if parts:
        yield NgramIndex(parts)


def _columns(evaluation_set: EvaluationSet, texts: HashedTexts, hits: Hits, train: Dataset) -> dict[str, list[str]]:
    """Return the rows of `CONTAMINATION_FEATURES` for some items, as columns."""
    exact = hits.exact
    rows = np.where(exact == NO_ROW, hits.ngram, exact)
    items = np.flatnonzero(rows != NO_ROW)
    return {
        "benchmark": [evaluation_set.name] * len(items),
        "item": evaluation_set.ids(texts.numbers[items].tolist()),
        "kind": np.where(exact[items] == NO_ROW, "ngram", "exact").tolist(),
        "example_id": _ids(train, rows[items].tolist()),
    }


def _ids(rows: Dataset, numbers: list[int]) -> list[str]:
    return rows.select_columns("id").with_format("arrow")[numbers].column("id").to_pylist() if numbers else []


def _count(counts: dict[str, int], hits: Hits) -> None:
    is_exact, is_ngram = hits.exact != NO_ROW, hits.ngram != NO_ROW
    counts["exact"] += int(is_exact.sum())
    counts["ngram"] += int((~is_exact & is_ngram).sum())
    counts["boilerplate"] += int((~is_exact & ~is_ngram & hits.boilerplate).sum())
    counts["items"] += len(is_exact)


def _collect_boilerplate(
    runs: dict[int, dict[str, Any]], evaluation_set: EvaluationSet, texts: HashedTexts, hits: Hits, index: NgramIndex
) -> None:
    """Add the first run of boilerplate of each item to `runs` as text, by its hash."""
    owners = np.searchsorted(texts.ends, hits.boilerplate_starts, side="right")
    starts = hits.boilerplate_starts[np.unique(owners, return_index=True)[1]]
    keys, num_rows = index.count_rows(texts, starts) if len(starts) else (starts, starts)
    for first in np.sort(np.unique(keys, return_index=True)[1]):
        key, start = int(keys[first]), int(starts[first])
        if key in runs or len(runs) == MAX_BOILERPLATE_SHOWN:
            continue
        item = int(np.searchsorted(texts.ends, start, side="right"))
        offset = start - int(texts.starts[item])
        words = ngrams.split_words(evaluation_set.text(int(texts.numbers[item])))[offset : offset + NGRAM_WORDS]
        runs[key] = {"benchmark": evaluation_set.name, "words": " ".join(words), "rows": int(num_rows[first])}


def _heads_and_tails(rows: Dataset) -> Iterator[tuple[int, str, str]]:
    """Yield for each example its number, the text before its last question, and that question with its answer."""
    number = 0
    for batch in corpus.iter_batches(rows):
        first = np.flatnonzero(batch.column("copy").to_numpy() == 0)
        heads, tails = _split_texts(batch.take(pa.array(first)))
        yield from zip((number + first).tolist(), heads.to_pylist(), tails.to_pylist(), strict=True)
        number += batch.num_rows


def _split_texts(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    messages = batch.column("messages")
    offsets = messages.offsets.to_numpy()
    is_user = pc.equal(messages.values.field("role"), "user").to_numpy(zero_copy_only=False)
    questions = np.append(-1, np.flatnonzero(is_user))
    # an example without a question is all tail
    last = np.maximum(questions[np.searchsorted(questions, offsets[1:]) - 1], offsets[:-1])
    edges = np.append(np.stack([offsets[:-1], last], axis=1), offsets[-1:])
    halves = _join_turns(messages.values, edges)
    chosen, rejected = (_join_turns(turns.values, turns.offsets) for turns in map(batch.column, ("chosen", "rejected")))
    heads = pc.binary_join_element_wise(rejected, halves[::2], " ")
    return heads, pc.binary_join_element_wise(halves[1::2], chosen, batch.column("text"), " ")


def _join_turns(turns: pa.StructArray, edges: Any) -> pa.Array:
    """Join the texts and calls of the turns between edges."""
    calls = pc.fill_null(turns.field("tool_calls"), "")
    texts = pc.binary_join_element_wise(turns.field("content"), calls, " ")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(edges, pa.int32()), texts), " ")
