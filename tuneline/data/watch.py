"""What is looked for in the training rows: items of the evaluation sets and their n-grams, as tables of hashes."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tuneline.data.phrases import NOWHERE, Hashes, Numbers, Table, Texts

NGRAM_WORDS = 13


class EvaluationSet(Protocol):
    """Items by number; `inside` says that a whole item counts wherever it stands in a training example."""

    name: str
    inside: bool

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[Texts]: ...

    def ids(self, numbers: list[int]) -> list[str]: ...


class Part:
    """The hashes of some items of one evaluation set, without the words."""

    def __init__(self, of: EvaluationSet, texts: Texts) -> None:
        self.of, self.start, self.stop = of, int(texts.numbers[0]), int(texts.numbers[-1]) + 1
        self.ngrams = _ngrams(texts)[1]
        self.wholes: dict[int, Hashes] = {}
        if of.inside:
            self.wholes = {length: texts.runs(texts.starts[items], length) for length, items in _by_length(texts)}
        self.openings = _openings(texts) if of.inside else self.ngrams[:0]
        self.tails = self.ngrams[:0] if of.inside else _tails(texts)[1]


class Watch:
    """What is looked for of some parts, by number of words, and the first training row of each hit."""

    def __init__(self, parts: list[Part]) -> None:
        self._ranges = [(part.of, part.start, part.stop) for part in parts]
        self._openings = np.unique(np.concatenate([part.openings for part in parts]))
        tails = [part.tails for part in parts]
        self._tails = Table(tails) if any(map(len, tails)) else None
        runs: dict[int, list[Hashes]] = {NGRAM_WORDS: [part.ngrams for part in parts]}
        for part in parts:
            for length, hashes in part.wholes.items():
                runs.setdefault(length, []).append(hashes)
        parts.clear()
        ascending = ((length, runs.pop(length)) for length in sorted(runs))
        self._runs = {length: Table(hashes) for length, hashes in ascending if any(map(len, hashes))}

    def texts(self) -> Iterator[tuple[EvaluationSet, Texts]]:
        """Yield what is looked for once more."""
        for one, start, stop in self._ranges:
            for texts in one.texts(start, stop):
                yield one, texts

    def look(self, texts: Texts) -> None:
        """Note what some training texts hold."""
        rows, room = texts.numbers[texts.owners()], texts.room()
        candidates = np.arange(len(texts))
        for length, table in self._runs.items():
            candidates = candidates[room[candidates] >= length]
            if not len(candidates):
                break
            hashes = texts.runs(candidates, length)
            found = table.see(hashes, rows[candidates])
            if length == NGRAM_WORDS:  # lengths ascend, and what is longer begins with an n-gram
                candidates = candidates[found[np.isin(hashes[found], self._openings)]]
        if self._tails:
            some, hashes = _tails(texts)
            self._tails.see(hashes, texts.numbers[some])

    def found(self, one: EvaluationSet, texts: Texts) -> tuple[Numbers, Numbers]:
        """Return for each item the first row that holds it whole, and the first that holds an n-gram of it."""
        exact, ngram = (np.full(len(texts.ends), NOWHERE, np.int64) for _ in range(2))
        if one.inside:
            for length, items in _by_length(texts):
                exact[items] = self._runs[length].first_rows(texts.runs(texts.starts[items], length))
        elif self._tails:
            items, hashes = _tails(texts)
            exact[items] = self._tails.first_rows(hashes)
        items, hashes = _ngrams(texts)
        if len(hashes):
            np.minimum.at(ngram, items, self._runs[NGRAM_WORDS].first_rows(hashes))
        return exact, ngram


def _by_length(texts: Texts) -> Iterator[tuple[int, Numbers]]:
    """Yield the texts that have words, by their number of words."""
    lengths = texts.ends - texts.starts
    for length in np.unique(lengths[lengths > 0]):
        yield int(length), np.flatnonzero(lengths == length)


def _ngrams(texts: Texts) -> tuple[Numbers, Hashes]:
    """Return the n-grams' texts and hashes."""
    starts = np.flatnonzero(texts.room() >= NGRAM_WORDS)
    return texts.owners()[starts], texts.runs(starts, NGRAM_WORDS)


def _openings(texts: Texts) -> Hashes:
    """Return the hashes of the n-grams with which texts begin."""
    return texts.runs(texts.starts[texts.ends - texts.starts >= NGRAM_WORDS], NGRAM_WORDS)


def _tails(texts: Texts) -> tuple[Numbers, Hashes]:
    """Return the texts whose last part has words, and its hash."""
    lengths = texts.ends - texts.tails
    some = np.flatnonzero(lengths)
    return some, texts.runs(texts.tails[some], lengths[some])
