"""What is looked for in the training rows: items of the evaluation sets and their n-grams, as tables of hashes."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tuneline.data.ngrams import NO_ROW, HashedTexts, Hashes, NgramTable, Numbers

NGRAM_WORDS = 13


class EvaluationSet(Protocol):
    """Items by number; `inside` says that a whole item counts wherever it stands in a training example."""

    name: str
    inside: bool

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[HashedTexts]: ...

    def ids(self, numbers: list[int]) -> list[str]: ...

    def text(self, number: int) -> str: ...


class Hits(NamedTuple):
    """Of each item: the first row that holds it whole, the first that holds one of its n-grams, else `NOWHERE`.

    An n-gram that more than so many rows hold is boilerplate. It is no hit, and neither is one that shares a word with
    it, as the first words behind a common instruction are often the same. `boilerplate` marks the items that have
    some, and `frequent` is where these n-grams begin among the words.
    """

    exact: Numbers
    ngram: Numbers
    boilerplate: NDArray[np.bool_]
    frequent: Numbers


class ItemHashes:
    """The hashes of some items of one evaluation set, without the words."""

    def __init__(self, of: EvaluationSet, texts: HashedTexts) -> None:
        self.of, self.start, self.stop = of, int(texts.numbers[0]), int(texts.numbers[-1]) + 1
        self.ngrams = _ngrams(texts)[1]
        self.wholes: dict[int, Hashes] = {}
        if of.inside:
            self.wholes = {length: texts.runs(texts.starts[items], length) for length, items in _by_length(texts)}
        self.openings = _openings(texts) if of.inside else self.ngrams[:0]
        self.tails = self.ngrams[:0] if of.inside else _tails(texts)[1]


class NgramIndex:
    """What is looked for of some parts, by number of words, and the first training row of each hit."""

    def __init__(self, parts: list[ItemHashes]) -> None:
        self._ranges = [(part.of, part.start, part.stop) for part in parts]
        self._openings = np.unique(np.concatenate([part.openings for part in parts]))
        tails = [part.tails for part in parts]
        self._tails = NgramTable(tails) if any(map(len, tails)) else None
        runs: dict[int, list[Hashes]] = {NGRAM_WORDS: [part.ngrams for part in parts]}
        for part in parts:
            for length, hashes in part.wholes.items():
                runs.setdefault(length, []).append(hashes)
        parts.clear()
        ascending = ((length, runs.pop(length)) for length in sorted(runs))
        self._runs = {length: NgramTable(hashes) for length, hashes in ascending if any(map(len, hashes))}

    def texts(self) -> Iterator[tuple[EvaluationSet, HashedTexts]]:
        """Yield what is looked for once more."""
        for one, start, stop in self._ranges:
            for texts in one.texts(start, stop):
                yield one, texts

    def look(self, texts: HashedTexts) -> None:
        """Note what some training texts hold."""
        rows, room = texts.numbers[texts.text_indices()], texts.words_remaining()
        candidates = np.arange(len(texts))
        for length, table in self._runs.items():
            candidates = candidates[room[candidates] >= length]
            if not len(candidates):
                break
            hashes = texts.runs(candidates, length)
            found = table.record_rows(hashes, rows[candidates])
            if length == NGRAM_WORDS:  # lengths ascend, and what is longer begins with an n-gram
                candidates = candidates[found[np.isin(hashes[found], self._openings)]]
        if self._tails:
            some, hashes = _tails(texts)
            self._tails.record_rows(hashes, texts.numbers[some])

    def ngrams(self, texts: HashedTexts, starts: Numbers) -> tuple[Hashes, Numbers]:
        """Return the hashes of the n-grams that begin at some words, and how many training rows hold each."""
        hashes = texts.runs(starts, NGRAM_WORDS)
        return hashes, self._runs[NGRAM_WORDS].num_rows(hashes)

    def found(self, one: EvaluationSet, texts: HashedTexts, boilerplate_rows: int) -> Hits:
        """Return what training rows hold of some items; n-grams in more than `boilerplate_rows` of them are no hit."""
        exact, ngram = (np.full(len(texts.ends), NO_ROW, np.int64) for _ in range(2))
        if one.inside:
            for length, items in _by_length(texts):
                exact[items] = self._runs[length].first_rows(texts.runs(texts.starts[items], length))
        elif self._tails:
            items, hashes = _tails(texts)
            exact[items] = self._tails.first_rows(hashes)
        starts, hashes = _ngrams(texts)
        boilerplate, frequent = np.zeros(len(texts.ends), np.bool_), starts[:0]
        if len(hashes):
            items, table = texts.text_indices()[starts], self._runs[NGRAM_WORDS]
            often = table.num_rows(hashes) > boilerplate_rows
            boilerplate[items[often]], frequent = True, starts[often]
            apart = ~_overlap(starts, frequent)
            np.minimum.at(ngram, items[apart], table.first_rows(hashes[apart]))
        return Hits(exact, ngram, boilerplate, frequent)


def _by_length(texts: HashedTexts) -> Iterator[tuple[int, Numbers]]:
    """Yield the texts that have words, by their number of words."""
    lengths = texts.ends - texts.starts
    for length in np.unique(lengths[lengths > 0]):
        yield int(length), np.flatnonzero(lengths == length)


def _ngrams(texts: HashedTexts) -> tuple[Numbers, Hashes]:
    """Return the words at which n-grams begin, and the n-grams' hashes."""
    starts = np.flatnonzero(texts.words_remaining() >= NGRAM_WORDS)
    return starts, texts.runs(starts, NGRAM_WORDS)


def _overlap(starts: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Return which n-grams share a word with one of the others; all are given by where they begin, ascending."""
    after = np.searchsorted(others, starts - NGRAM_WORDS, side="right")
    return after < np.searchsorted(others, starts + NGRAM_WORDS, side="left")


def _openings(texts: HashedTexts) -> Hashes:
    """Return the hashes of the n-grams with which texts begin."""
    return texts.runs(texts.starts[texts.ends - texts.starts >= NGRAM_WORDS], NGRAM_WORDS)


def _tails(texts: HashedTexts) -> tuple[Numbers, Hashes]:
    """Return the texts whose last part has words, and its hash."""
    lengths = texts.ends - texts.tails
    some = np.flatnonzero(lengths)
    return some, texts.runs(texts.tails[some], lengths[some])
