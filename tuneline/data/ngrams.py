"""Word n-grams that texts share, found by rolling hashes.

The hash of any n-gram follows from two prefix sums (Karp and Rabin 1987), so hashing all n-grams of one length takes a
few array operations; the n-grams to search for are sorted arrays of 64-bit hashes. Two different n-grams collide with a
probability of about 2^-64. The hashes of words differ between processes; the matches do not.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_QUESTION_WORDS = 8
"""Questions with fewer words are searched for together with their choices."""

NO_ROW = np.iinfo(np.int32).max
"""Row number that means no row."""

WORDS_PER_BATCH = 2**16
"""Approximate number of words that are hashed per batch."""

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
    """Return the words in lower case, without punctuation; each Chinese or Japanese character is a separate word."""
    lowered = text.lower()
    return lowered.translate(_ASCII).split() if lowered.isascii() else _WORD.findall(lowered)


class HashedTexts:
    """A batch of texts as concatenated word hashes.

    Text `i` has the number `numbers[i]`; its words are at positions `starts[i]` to `ends[i]` (exclusive), and its last
    part, which is compared as a whole, starts at `tails[i]`.
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
        """Hash the n-grams of `lengths` words (one number, or one per start) that start at `starts`."""
        hashes: Hashes = (self._sums[starts + lengths] - self._sums[starts]) * self._inverses[starts]
        return hashes

    def text_indices(self) -> Numbers:
        """Return the index of the text of each word."""
        return np.repeat(np.arange(len(self.ends)), self.ends - self.starts)

    def words_remaining(self) -> Numbers:
        """Return the number of words from each word to the end of its text, including the word."""
        return np.repeat(self.ends, self.ends - self.starts) - np.arange(len(self))


def hash_texts(texts: Iterable[tuple[int, str, str]]) -> Iterator[HashedTexts]:
    """Hash texts, given as number, first part and last part, in batches of about `WORDS_PER_BATCH` words."""
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
    words = split_words(text)
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


class NgramTable:
    """Hashes to search for (at least one), each with the first row that contains it and the number of such rows."""

    def __init__(self, hashes: list[Hashes]) -> None:
        self._hashes = np.concatenate(hashes)
        self._hashes.sort()
        self._rows = np.full(len(self._hashes), NO_ROW, np.int32)
        self._num_rows = np.zeros(len(self._hashes), np.uint32)
        # Most hashes are not in the table; testing their upper bits is far cheaper than a search.
        bits = min(max(len(self._hashes).bit_length() + 3, 10), 23)
        self._shift = np.uint64(64 - bits)
        self._upper = np.zeros(2**bits, np.bool_)
        self._upper[self._hashes >> self._shift] = True

    def record_rows(self, hashes: Hashes, rows: Numbers) -> Numbers:
        """Record the rows of hashes; return the indices into `hashes` of those in the table.

        Row numbers must ascend from call to call, and all hashes of a row must be in one call, so that each row is
        counted once.
        """
        candidates = np.flatnonzero(self._upper[hashes >> self._shift])
        positions, is_match = self._find(hashes[candidates])
        matches, positions = candidates[is_match], positions[is_match]
        new = np.flatnonzero(self._rows[positions] == NO_ROW)
        np.minimum.at(self._rows, positions[new], rows[matches[new]].astype(np.int32))
        if len(matches):
            self._count(positions, rows[matches])
        return matches

    def _count(self, positions: Numbers, rows: Numbers) -> None:
        span = int(rows.max() - rows.min()) + 1
        distinct = np.unique(positions * span + (rows - rows.min()))
        np.add.at(self._num_rows, distinct // span, 1)

    def first_rows(self, hashes: Hashes) -> Numbers:
        """Return the lowest row that contains each hash, or `NO_ROW`."""
        positions, is_match = self._find(hashes)
        return np.where(is_match, self._rows[positions], NO_ROW).astype(np.int64)

    def num_rows(self, hashes: Hashes) -> Numbers:
        """Return the number of rows that contain each hash."""
        positions, is_match = self._find(hashes)
        return np.where(is_match, self._num_rows[positions], 0).astype(np.int64)

    def _find(self, hashes: Hashes) -> tuple[Numbers, NDArray[np.bool_]]:
        """Return the position of each hash in the table (the first of equal ones), and whether it is in the table."""
        positions = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return positions, self._hashes[positions] == hashes
