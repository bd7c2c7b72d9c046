"""N-gram index: hash tables of evaluation items and their n-grams, which are looked up in the training rows."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tuneline.data.ngrams import NO_ROW, HashedTexts, Hashes, NgramTable, Numbers

NGRAM_WORDS = 13


class EvaluationSet(Protocol):
    """Numbered items. `matches_anywhere`: a whole item counts at any position in a training example."""

    name: str
    matches_anywhere: bool

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]: ...

    def ids(self, numbers: list[int]) -> list[str]: ...

    def text(self, number: int) -> str: ...


class Hits(NamedTuple):
    """For each item: the first row that contains it whole, and the first with one of its n-grams, or `ngrams.NO_ROW`.

    An n-gram in more rows than the limit is boilerplate. It is not a hit, and neither is an n-gram that shares a word
    with it, because the first words after a common instruction are often the same. `boilerplate` marks the items with
    such n-grams, and `boilerplate_starts` holds the positions of these n-grams among the words.
    """

    exact: Numbers
    ngram: Numbers
    boilerplate: NDArray[np.bool_]
    boilerplate_starts: Numbers


class ItemHashes:
    """Hashes of consecutive items of one evaluation set, without their words."""

    def __init__(self, evaluation_set: EvaluationSet, texts: HashedTexts) -> None:
        self.evaluation_set = evaluation_set
        self.start, self.stop = int(texts.numbers[0]), int(texts.numbers[-1]) + 1
        self.ngrams = _ngrams(texts)[1]
        self.items_by_length: dict[int, Hashes] = {}
        if evaluation_set.matches_anywhere:
            self.items_by_length = {
                length: texts.runs(texts.starts[items], length) for length, items in _by_length(texts)
            }
        self.first_ngrams = _first_ngrams(texts) if evaluation_set.matches_anywhere else self.ngrams[:0]
        self.tails = self.ngrams[:0] if evaluation_set.matches_anywhere else _tails(texts)[1]


class NgramIndex:
    """Tables of item and n-gram hashes by number of words, with the first training row of each hit."""

    def __init__(self, parts: list[ItemHashes]) -> None:
        self._ranges = [(part.evaluation_set, part.start, part.stop) for part in parts]
        self._first_ngrams = np.unique(np.concatenate([part.first_ngrams for part in parts]))
        tails = [part.tails for part in parts]
        self._tails = NgramTable(tails) if any(map(len, tails)) else None
        hashes_by_length: dict[int, list[Hashes]] = {NGRAM_WORDS: [part.ngrams for part in parts]}
        for part in parts:
            for length, hashes in part.items_by_length.items():
                hashes_by_length.setdefault(length, []).append(hashes)
        parts.clear()
        ascending = ((length, hashes_by_length.pop(length)) for length in sorted(hashes_by_length))
        self._tables = {length: NgramTable(hashes) for length, hashes in ascending if any(map(len, hashes))}

    def texts(self) -> Iterator[tuple[EvaluationSet, HashedTexts]]:
        """Yield the indexed items again, with their evaluation set."""
        for evaluation_set, start, stop in self._ranges:
            for texts in evaluation_set.texts(start, stop):
                yield evaluation_set, texts

    def scan(self, texts: HashedTexts) -> None:
        """Record the items and n-grams that some training texts hold."""
        rows, room = texts.numbers[texts.text_indices()], texts.words_remaining()
        candidates = np.arange(len(texts))
        for length, table in self._tables.items():
            candidates = candidates[room[candidates] >= length]
            if not len(candidates):
                break
            hashes = texts.runs(candidates, length)
            matches = table.record_rows(hashes, rows[candidates])
            if length == NGRAM_WORDS:  # lengths ascend, and every longer item begins with an n-gram
                candidates = candidates[matches[np.isin(hashes[matches], self._first_ngrams)]]
        if self._tails:
            non_empty, hashes = _tails(texts)
            self._tails.record_rows(hashes, texts.numbers[non_empty])

    def count_rows(self, texts: HashedTexts, starts: Numbers) -> tuple[Hashes, Numbers]:
        """Return the hashes of the n-grams that begin at some words, and the number of training rows that hold each."""
        hashes = texts.runs(starts, NGRAM_WORDS)
        return hashes, self._tables[NGRAM_WORDS].num_rows(hashes)

    def find(self, evaluation_set: EvaluationSet, texts: HashedTexts, boilerplate_rows: int) -> Hits:
        """Return the hits of some items; n-grams in more than `boilerplate_rows` training rows are not hits."""
        exact, ngram = (np.full(len(texts.ends), NO_ROW, np.int64) for _ in range(2))
        if evaluation_set.matches_anywhere:
            for length, items in _by_length(texts):
                exact[items] = self._tables[length].first_rows(texts.runs(texts.starts[items], length))
        elif self._tails:
            items, hashes = _tails(texts)
            exact[items] = self._tails.first_rows(hashes)
        starts, hashes = _ngrams(texts)
        boilerplate, boilerplate_starts = np.zeros(len(texts.ends), np.bool_), starts[:0]
        if len(hashes):
            items, table = texts.text_indices()[starts], self._tables[NGRAM_WORDS]
            is_frequent = table.num_rows(hashes) > boilerplate_rows
            boilerplate[items[is_frequent]], boilerplate_starts = True, starts[is_frequent]
            is_distinct = ~_overlap(starts, boilerplate_starts)
            np.minimum.at(ngram, items[is_distinct], table.first_rows(hashes[is_distinct]))
        return Hits(exact, ngram, boilerplate, boilerplate_starts)


def _by_length(texts: HashedTexts) -> Iterator[tuple[int, Numbers]]:
    """Yield the indices of the non-empty texts by number of words."""
    lengths = texts.ends - texts.starts
    for length in np.unique(lengths[lengths > 0]):
        yield int(length), np.flatnonzero(lengths == length)


def _ngrams(texts: HashedTexts) -> tuple[Numbers, Hashes]:
    """Return the start positions of all n-grams, and their hashes."""
    starts = np.flatnonzero(texts.words_remaining() >= NGRAM_WORDS)
    return starts, texts.runs(starts, NGRAM_WORDS)


def _overlap(starts: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Return which n-grams share a word with one of the others; both are start positions in ascending order."""
    after = np.searchsorted(others, starts - NGRAM_WORDS, side="right")
    return after < np.searchsorted(others, starts + NGRAM_WORDS, side="left")


def _first_ngrams(texts: HashedTexts) -> Hashes:
    """Return the hashes of the first n-gram of each text."""
    return texts.runs(texts.starts[texts.ends - texts.starts >= NGRAM_WORDS], NGRAM_WORDS)


def _tails(texts: HashedTexts) -> tuple[Numbers, Hashes]:
    """Return the indices of the texts whose last part has words, and the hash of that part."""
    lengths = texts.ends - texts.tails
    non_empty = np.flatnonzero(lengths)
    return non_empty, texts.runs(texts.tails[non_empty], lengths[non_empty])
