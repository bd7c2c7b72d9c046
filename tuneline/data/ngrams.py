"""Runs of words that texts share, found by hash.

The hash of any run follows from two prefix sums (Karp and Rabin 1987), so all runs of a length cost a few array
operations; what is looked for stands in sorted arrays of 64-bit hashes. That two different runs have one hash happens
to about 1 of 2^64 pairs. The hashes of words differ from process to process; what is found does not.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_QUESTION_WORDS = 8
"""A question of fewer words is looked for together with its choices."""

NO_ROW = np.iinfo(np.int32).max
"""The number of a row where no row is meant."""

WORDS_PER_BATCH = 2**16
"""Words whose hashes are computed at once."""

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_UNSPACED = _KANA + "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII = {code: " " for code in range(128) if not chr(code).isalnum()}

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

_NONE = np.zeros(0, np.uint64)


def split_words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation; a Chinese or Japanese character is a word of its own."""
    lowered = text.lower()
    return lowered.translate(_ASCII).split() if lowered.isascii() else _WORD.findall(lowered)


class HashedTexts:
    """Some texts as hashes of their words, laid end to end.

    Text `i` has the number `numbers[i]`; its words stand from `starts[i]` to before `ends[i]`, and its last part, which
    is compared as a whole, begins at `tails[i]`.
    """

    def __init__(self, numbers: list[int], heads: list[Hashes], tails: list[Hashes]) -> None:
        lengths = np.array([[len(head), len(tail)] for head, tail in zip(heads, tails, strict=True)], np.int64)
        edges = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
        self.numbers = np.array(numbers, np.int64)
        self.starts, self.tails, self.ends = edges[:-1:2], edges[1::2], edges[2::2]
        hashes = np.concatenate([part for both in zip(heads, tails, strict=True) for part in both])
        powers, self._inverses = (np.cumprod(np.full(len(hashes) + 1, x, np.uint64)) for x in (_BASE, _INVERSE))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers[:-1])])

    def __len__(self) -> int:
        return len(self._sums) - 1

    def runs(self, starts: Numbers, lengths: Any) -> Hashes:
        """Hash the runs of `lengths` words (one number, or one for each start) that begin at `starts`."""
        found: Hashes = (self._sums[starts + lengths] - self._sums[starts]) * self._inverses[starts]
        return found

    def text_indices(self) -> Numbers:
        """Return for each word the position of its text."""
        return np.repeat(np.arange(len(self.ends)), self.ends - self.starts)

    def words_remaining(self) -> Numbers:
        """Return for each word how many words its text has from there on."""
        return np.repeat(self.ends, self.ends - self.starts) - np.arange(len(self))


def hash_texts(texts: Iterable[tuple[int, str, str]]) -> Iterator[HashedTexts]:
    """Hash texts, given as number, first part and last part, some thousands of words at once."""
    numbers, heads, tails, total = list[int](), list[Hashes](), list[Hashes](), 0
    for number, head, tail in texts:
        numbers.append(number)
        heads.append(_hashes(head))
        tails.append(_hashes(tail))
        total += len(heads[-1]) + len(tails[-1])
        if total >= WORDS_PER_BATCH:
            yield HashedTexts(numbers, heads, tails)
            numbers, heads, tails, total = [], [], [], 0
    if numbers:
        yield HashedTexts(numbers, heads, tails)


def _hashes(text: str) -> Hashes:
    if not text or text.isspace():
        return _NONE
    found = split_words(text)
    return np.fromiter(map(hash, found), np.int64, len(found)).view(np.uint64)


class NgramTable:
    """Hashes that are looked for (at least one), each with the first row that holds it and the number of such rows."""

    def __init__(self, hashes: list[Hashes]) -> None:
        self._hashes = np.concatenate(hashes)
        self._hashes.sort()
        self._rows = np.full(len(self._hashes), NO_ROW, np.int32)
        self._num_rows = np.zeros(len(self._hashes), np.uint32)
        # Most hashes are in no table; a look at their upper bits tells so for far less than a search.
        bits = min(max(len(self._hashes).bit_length() + 3, 10), 23)
        self._shift = np.uint64(64 - bits)
        self._upper = np.zeros(2**bits, np.bool_)
        self._upper[self._hashes >> self._shift] = True

    def record_rows(self, hashes: Hashes, rows: Numbers) -> Numbers:
        """Note in which rows hashes stand; return the positions of known ones.

        Rows ascend from call to call, and all hashes of a row come in one call, so that each row is counted once.
        """
        near = np.flatnonzero(self._upper[hashes >> self._shift])
        at, known = self._find(hashes[near])
        found, at = near[known], at[known]
        new = np.flatnonzero(self._rows[at] == NO_ROW)
        np.minimum.at(self._rows, at[new], rows[found[new]].astype(np.int32))
        if len(found):
            self._count(at, rows[found])
        return found

    def _count(self, at: Numbers, rows: Numbers) -> None:
        span = int(rows.max() - rows.min()) + 1
        once = np.unique(at * span + (rows - rows.min()))
        np.add.at(self._num_rows, once // span, 1)

    def first_rows(self, hashes: Hashes) -> Numbers:
        """Return for each hash the lowest row in which it was seen, or `NOWHERE`."""
        at, known = self._find(hashes)
        return np.where(known, self._rows[at], NO_ROW).astype(np.int64)

    def num_rows(self, hashes: Hashes) -> Numbers:
        """Return for each hash the number of rows that hold it."""
        at, known = self._find(hashes)
        return np.where(known, self._num_rows[at], 0).astype(np.int64)

    def _find(self, hashes: Hashes) -> tuple[Numbers, NDArray[np.bool_]]:
        """Return where hashes stand, of equal ones the first, and whether they do."""
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return at, self._hashes[at] == hashes
