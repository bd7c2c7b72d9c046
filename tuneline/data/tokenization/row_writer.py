"""Training rows: tokenized examples wait in a file, so that packing sees all lengths and memory holds none of the ids.

A row is one or several examples end to end. `position_ids` begin anew with each, and `lengths` say where each ends.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from tuneline.data.corpus import RowWriter, create_scratch_file
from tuneline.data.schema import IGNORE_INDEX
from tuneline.data.tokenization import packing as packing_module
from tuneline.data.tokenization.loss_mask import TokenizedSequence

ROW_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "position_ids": List(Value("int32")),
        "lengths": List(Value("int32")),
        "example_ids": List(Value("string")),
    }
)

Packing = bool | Literal["wrapped"]
ROWS_PER_WRITE = 256
EXAMPLE_ID_BYTES = 32
INT32_BYTES = array("i").itemsize


class TokenizedSpool:
    """Tokenized examples in a scratch file: their ids, labels and example ids, found by number."""

    def __init__(self) -> None:
        self._path: Path = create_scratch_file()
        self._file = self._path.open("wb")
        self._offsets = array("q", [0])
        self.lengths = array("i")
        self.num_trained = 0
        self._padding = b""

    def add(self, tokens: TokenizedSequence) -> None:
        """Append an example; its first token carries no loss, as nothing of its own stands before it."""
        ids = array("i", tokens.input_ids).tobytes()
        parts, done = [ids], 0
        for start, end in tokens.trained:
            start = max(start, 1)
            parts += [self._ignored(start - done), ids[start * INT32_BYTES : end * INT32_BYTES]]
            self.num_trained += end - start
            done = end
        parts += [self._ignored(len(tokens.input_ids) - done), bytes.fromhex(tokens.example_id)]
        self._offsets.append(self._offsets[-1] + self._file.write(b"".join(parts)))
        self.lengths.append(len(tokens.input_ids))

    def _ignored(self, count: int) -> bytes:
        """Return so many labels without loss."""
        if len(self._padding) < count * INT32_BYTES:
            self._padding = array("i", [IGNORE_INDEX]).tobytes() * 2 * count
        return self._padding[: count * INT32_BYTES]

    def rows(self, max_length: int, packing: Packing) -> Dataset:
        """Lay the examples out as rows.

        Args:
            max_length: Tokens a row may hold.
            packing: Best-fit, none, or one stream of all examples cut into rows.
        """
        self._file.close()
        sizes = np.frombuffer(self.lengths, np.int32) if self.lengths else np.empty(0, np.int32)
        handle = os.open(self._path, os.O_RDONLY)
        try:
            with RowWriter(ROW_FEATURES) as writer:
                made = (
                    self._stream(handle, max_length)
                    if packing == "wrapped"
                    else self._packed(handle, sizes, max_length, packing=bool(packing))
                )
                for columns in made:
                    writer.write(columns)
        finally:
            os.close(handle)
            self._path.unlink()
        return writer.rows()

    def _read(self, handle: int, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32], str]:
        n = self.lengths[i]
        data = os.pread(handle, self._offsets[i + 1] - self._offsets[i], self._offsets[i])
        both = np.frombuffer(data, np.int32, count=2 * n)
        return both[:n], both[n:], data[-EXAMPLE_ID_BYTES:].hex()

    def _packed(
        self, handle: int, sizes: NDArray[np.int32], max_length: int, *, packing: bool
    ) -> Iterator[dict[str, pa.Array]]:
        bins: Any = packing_module.best_fit_decreasing(sizes, max_length) if packing else np.arange(len(sizes))[:, None]
        for first in range(0, len(bins), ROWS_PER_WRITE):
            members = bins[first : first + ROWS_PER_WRITE]
            found = [self._read(handle, i) for row in members for i in row.tolist()]
            yield _columns([len(row) for row in members], found)

    def _stream(self, handle: int, max_length: int) -> Iterator[dict[str, pa.Array]]:
        """Cut one long stream of all examples into rows; what stands beside it in a row is seen by each."""
        ids = marks = np.empty(0, np.int32)
        inside: list[str] = []
        for i in range(len(self.lengths)):
            more, more_marks, name = self._read(handle, i)
            ids, marks, inside = np.concatenate([ids, more]), np.concatenate([marks, more_marks]), [*inside, name]
            while len(ids) >= max_length:
                yield _one_segment(ids[:max_length], marks[:max_length], inside)
                ids, marks = ids[max_length:], marks[max_length:]
                inside = [name] if len(ids) else []
        if len(ids):
            yield _one_segment(ids, marks, inside)


def _columns(members: list[int], found: list[tuple[NDArray[np.int32], NDArray[np.int32], str]]) -> dict[str, pa.Array]:
    """Lay out rows of `members[k]` examples each, taken from `found` in order."""
    sizes = np.array([len(ids) for ids, _, _ in found], np.int32)
    per_row = np.concatenate([[0], np.cumsum(members)]).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    positions = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], sizes)
    tokens = {
        "input_ids": np.concatenate([ids for ids, _, _ in found]),
        "labels": np.concatenate([marks for _, marks, _ in found]),
        "position_ids": positions,
    }
    columns = {name: _lists(ends[per_row], values) for name, values in tokens.items()}
    names = pa.ListArray.from_arrays(pa.array(per_row), pa.array([name for _, _, name in found], pa.string()))
    return {**columns, "lengths": _lists(per_row, sizes), "example_ids": names}


def _one_segment(ids: NDArray[np.int32], marks: NDArray[np.int32], names: list[str]) -> dict[str, pa.Array]:
    columns = _columns([1], [(ids, marks, "")])
    return {**columns, "example_ids": pa.array([names], pa.list_(pa.string()))}


def _lists(bounds: NDArray[np.int32], values: NDArray[np.int32]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(values))


def fill_rate(rows: Dataset, num_tokens: int, max_length: int) -> float:
    """Return the share of a row's places that hold a token."""
    return round(num_tokens / max(rows.num_rows * max_length, 1), 4)


def length_histogram(lengths: Iterable[int], max_length: int, bins: int = 20) -> dict[str, list[int]]:
    """Count examples by length: `edges` [bins + 1] in tokens, and `counts` [bins]."""
    counts, edges = np.histogram(np.fromiter(lengths, np.int32), bins=bins, range=(0, max_length))
    return {"edges": [round(edge) for edge in edges], "counts": counts.tolist()}
