"""What of the evaluation sets stands in the training examples: exam questions, and the held-out examples themselves.

An exam's question is found `exact` where a training example holds all its words in a row, and `ngram` where it holds 13
of them in a row (Brown et al. 2020, arXiv:2005.14165, appendix C). Of a held-out example, the last question with its
answer is looked for: `exact` where a training example ends in the same words, so that only case or punctuation made
them two, `ngram` as above. A run of 13 words that stands in more than 10 training examples is boilerplate (an
instruction that all rows share, a stock answer) and proves nothing; the number is that paper's. Whole copies are found
whatever their number. Memory is bounded: the evaluation sets are looked for in portions, the training rows stream.
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
from tuneline.data.ngrams import MIN_QUESTION_WORDS, NO_ROW, HashedTexts
from tuneline.identity import Located, Manifest

MAX_INDEX_WORDS = 2**21
"""Words of evaluation sets looked for at once, 24 bytes each; the training rows are read once a portion."""

MAX_BOILERPLATE_SHOWN = 5
"""Runs of boilerplate that are kept as text for each evaluation set."""

CONTAMINATION_FEATURES = Features(
    {"benchmark": Value("string"), "item": Value("string"), "kind": Value("string"), "example_id": Value("string")}
)
"""One row for each item found: `kind` is exact or ngram, `example_id` the first training example that holds it."""


@dataclass(frozen=True)
class ContaminationResult:
    """Items found in the training examples, how many by evaluation set, and some runs of boilerplate as text."""

    rows: Dataset
    counts: dict[str, dict[str, int]]
    boilerplate: list[dict[str, Any]]


def find_contamination(
    train: Dataset, validation: Dataset, exams: Manifest, boilerplate_rows: int = BOILERPLATE_ROWS
) -> ContaminationResult:
    """Look for every evaluation set's items in the training examples.

    Args:
        train: Rows of `MIXED`; copies of an example count once.
        validation: Rows of `MIXED`.
        exams: Exams and tasks whose questions are looked for.
        boilerplate_rows: An n-gram that more training examples hold is boilerplate.

    Returns:
        Rows of `FOUND`, in the order of the evaluation sets and their items, and for each evaluation set the numbers of
        items found `exact` and `ngram` (each item once) among its `items`, and of those that share nothing but
        `boilerplate`. For the first runs of boilerplate: `benchmark`, `words`, and how many training `rows` hold them.
    """
    sets: list[EvaluationSet] = [
        *(_Exam(exam.name, *_asked(exam)) for exam in exams.items),
        _HeldOut(validation),
    ]
    counts = {one.name: {"exact": 0, "ngram": 0, "boilerplate": 0, "items": 0} for one in sets}
    shown: dict[str, dict[int, dict[str, Any]]] = {one.name: {} for one in sets}
    with corpus.RowWriter(CONTAMINATION_FEATURES) as writer:
        for watch in _portions(sets):
            for texts in ngrams.hash_texts(_numbered(train)):
                watch.look(texts)
            for one, texts in watch.texts():
                hits = watch.found(one, texts, boilerplate_rows)
                writer.write(_columns(one, texts, hits, train))
                _count(counts[one.name], hits)
                _show(shown[one.name], one, texts, hits, watch)
            del watch  # before the next is built: each takes tens of megabytes
    return ContaminationResult(writer.rows(), counts, [run for runs in shown.values() for run in runs.values()])


class _Exam:
    inside = True

    def __init__(self, name: str, ids: list[str], texts: list[str]) -> None:
        self.name, self._ids, self._texts = name, ids, texts

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]:
        return ngrams.hash_texts((number, "", text) for number, text in enumerate(self._texts[start:stop], start))

    def ids(self, numbers: list[int]) -> list[str]:
        return [self._ids[number] for number in numbers]

    def text(self, number: int) -> str:
        return self._texts[number]


def _asked(exam: Located) -> tuple[list[str], list[str]]:
    """Return the ids and the texts of an exam's questions, or of a harness task's documents."""
    if lm_eval.is_lm_eval_benchmark(exam):
        file_check.check_unchanged(exam)
        rows = lm_eval.read_document_texts(exam)
        return [one for one, _ in rows], [text for _, text in rows]
    questions = [each for subject in multiple_choice.read_exam(exam).test.values() for each in subject]
    return [each.id() for each in questions], [_told_apart(each) for each in questions]


def _told_apart(question: multiple_choice.Question) -> str:
    """Return a question, with its choices where it is too short to be known by itself ("Which is true?")."""
    if len(ngrams.split_words(question.text)) >= MIN_QUESTION_WORDS:
        return question.text
    return " ".join((question.text, *question.choices))


class _HeldOut:
    inside = False
    name = HELD_OUT

    def __init__(self, validation: Dataset) -> None:
        self._rows = validation

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]:
        rows = self._rows if stop is None else self._rows.select(range(start, stop))
        return ngrams.hash_texts((start + number, "", tail) for number, _, tail in _numbered(rows))

    def ids(self, numbers: list[int]) -> list[str]:
        return _ids(self._rows, numbers)

    def text(self, number: int) -> str:
        return next(tail for _, _, tail in _numbered(self._rows.select([number])))


def _portions(sets: list[EvaluationSet]) -> Iterator[NgramIndex]:
    parts, total = list[ItemHashes](), 0
    for one in sets:
        for texts in one.texts():
            parts.append(ItemHashes(one, texts))
            total += len(texts)
            if total >= MAX_INDEX_WORDS:
                yield NgramIndex(parts)
                parts, total = [], 0
    if parts:
        yield NgramIndex(parts)


def _columns(one: EvaluationSet, texts: HashedTexts, hits: Hits, train: Dataset) -> dict[str, list[str]]:
    """Lay out the rows of `FOUND` for some items."""
    exact = hits.exact
    rows = np.where(exact == NO_ROW, hits.ngram, exact)
    hit = np.flatnonzero(rows != NO_ROW)
    return {
        "benchmark": [one.name] * len(hit),
        "item": one.ids(texts.numbers[hit].tolist()),
        "kind": np.where(exact[hit] == NO_ROW, "ngram", "exact").tolist(),
        "example_id": _ids(train, rows[hit].tolist()),
    }


def _ids(rows: Dataset, numbers: list[int]) -> list[str]:
    return rows.select_columns("id").with_format("arrow")[numbers].column("id").to_pylist() if numbers else []


def _count(counts: dict[str, int], hits: Hits) -> None:
    whole, part = hits.exact != NO_ROW, hits.ngram != NO_ROW
    counts["exact"] += int(whole.sum())
    counts["ngram"] += int((~whole & part).sum())
    counts["boilerplate"] += int((~whole & ~part & hits.boilerplate).sum())
    counts["items"] += len(whole)


def _show(
    shown: dict[int, dict[str, Any]], one: EvaluationSet, texts: HashedTexts, hits: Hits, watch: NgramIndex
) -> None:
    """Keep the runs of boilerplate with which items begin to share some, as text, by their hashes."""
    owners = np.searchsorted(texts.ends, hits.frequent, side="right")
    starts = hits.frequent[np.unique(owners, return_index=True)[1]]
    keys, num_rows = watch.ngrams(texts, starts) if len(starts) else (starts, starts)
    for first in np.sort(np.unique(keys, return_index=True)[1]):
        key, start = int(keys[first]), int(starts[first])
        if key in shown or len(shown) == MAX_BOILERPLATE_SHOWN:
            continue
        item = int(np.searchsorted(texts.ends, start, side="right"))
        offset = start - int(texts.starts[item])
        run = ngrams.split_words(one.text(int(texts.numbers[item])))[offset : offset + NGRAM_WORDS]
        shown[key] = {"benchmark": one.name, "words": " ".join(run), "rows": int(num_rows[first])}


def _numbered(rows: Dataset) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each example, what was said before its last question, and that question with its answer."""
    number = 0
    for batch in corpus.iter_batches(rows):
        first = np.flatnonzero(batch.column("copy").to_numpy() == 0)
        heads, tails = _heads_and_tails(batch.take(pa.array(first)))
        yield from zip((number + first).tolist(), heads.to_pylist(), tails.to_pylist(), strict=True)
        number += batch.num_rows


def _heads_and_tails(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    messages = batch.column("messages")
    offsets = messages.offsets.to_numpy()
    by_user = pc.equal(messages.values.field("role"), "user").to_numpy(zero_copy_only=False)
    asked = np.append(-1, np.flatnonzero(by_user))
    last = np.maximum(asked[np.searchsorted(asked, offsets[1:]) - 1], offsets[:-1])  # without a question: all is tail
    edges = np.append(np.stack([offsets[:-1], last], axis=1), offsets[-1:])
    halves = _said(messages.values, edges)
    chosen, rejected = (_said(turns.values, turns.offsets) for turns in map(batch.column, ("chosen", "rejected")))
    heads = pc.binary_join_element_wise(rejected, halves[::2], " ")
    return heads, pc.binary_join_element_wise(halves[1::2], chosen, batch.column("text"), " ")


def _said(turns: pa.StructArray, edges: Any) -> pa.Array:
    """Join what is said in the turns between edges."""
    calls = pc.fill_null(turns.field("tool_calls"), "")
    said = pc.binary_join_element_wise(turns.field("content"), calls, " ")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(edges, pa.int32()), said), " ")
