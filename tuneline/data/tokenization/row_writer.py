"""Training rows: tokenized examples are spooled to a scratch file and then laid out as packed or single rows.

Packing needs all lengths, but the token ids stay on disk. A row holds one or several examples end to end;
`position_ids` restart with each example, and `lengths` are the examples' lengths.
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
SpooledExample = tuple[NDArray[np.int32], NDArray[np.int32], str]
"""Input ids, labels and example id."""

ROWS_PER_WRITE = 256
EXAMPLE_ID_BYTES = 32
INT32_BYTES = array("i").itemsize


class TokenizedSpool:
    """Tokenized examples in a scratch file: ids, labels and example ids, addressed by number."""

    def __init__(self) -> None:
        self._path: Path = create_scratch_file()
        self._file = self._path.open("wb")
        self._offsets = array("q", [0])
        self.lengths = array("i")
        self.num_trained = 0
        self._padding = b""

    def add(self, sequence: TokenizedSequence) -> None:
        """Append an example; its first token has no loss because it has no context."""
        ids = array("i", sequence.input_ids).tobytes()
        parts, position = [ids], 0
        for start, end in sequence.trained:
            start = max(start, 1)
            parts += [self._ignored_labels(start - position), ids[start * INT32_BYTES : end * INT32_BYTES]]
            self.num_trained += end - start
            position = end
        parts += [self._ignored_labels(len(sequence.input_ids) - position), bytes.fromhex(sequence.example_id)]
        self._offsets.append(self._offsets[-1] + self._file.write(b"".join(parts)))
        self.lengths.append(len(sequence.input_ids))

    def _ignored_labels(self, count: int) -> bytes:
        """Return `count` labels without loss."""
        if len(self._padding) < count * INT32_BYTES:
            self._padding = array("i", [IGNORE_INDEX]).tobytes() * 2 * count
        return self._padding[: count * INT32_BYTES]

    def rows(self, max_length: int, packing: Packing) -> Dataset:
        """Lay the examples out as rows.

        Args:
            max_length: Maximum number of tokens per row.
            packing: Best-fit packing, no packing, or `wrapped`: one stream of all examples cut into rows.
        """
        self._file.close()
        sizes = np.frombuffer(self.lengths, np.int32) if self.lengths else np.empty(0, np.int32)
        handle = os.open(self._path, os.O_RDONLY)
        try:
            with RowWriter(ROW_FEATURES) as writer:
                batches = (
                    self._wrapped_rows(handle, max_length)
                    if packing == "wrapped"
                    else self._packed_rows(handle, sizes, max_length, packing=bool(packing))
                )
                for columns in batches:
                    writer.write(columns)
        finally:
            os.close(handle)
            self._path.unlink()
        return writer.rows()

    def _read(self, handle: int, i: int) -> SpooledExample:
        length = self.lengths[i]
        data = os.pread(handle, self._offsets[i + 1] - self._offsets[i], self._offsets[i])
        values = np.frombuffer(data, np.int32, count=2 * length)
        return values[:length], values[length:], data[-EXAMPLE_ID_BYTES:].hex()

    def _packed_rows(
        self, handle: int, sizes: NDArray[np.int32], max_length: int, *, packing: bool
    ) -> Iterator[dict[str, pa.Array]]:
        bins: Any = packing_module.best_fit_decreasing(sizes, max_length) if packing else np.arange(len(sizes))[:, None]
        for first in range(0, len(bins), ROWS_PER_WRITE):
            rows = bins[first : first + ROWS_PER_WRITE]
            examples = [self._read(handle, i) for row in rows for i in row.tolist()]
            yield _columns([len(row) for row in rows], examples)

    def _wrapped_rows(self, handle: int, max_length: int) -> Iterator[dict[str, pa.Array]]:
        """Cut a single stream of all examples into rows; examples in one row attend to each other."""
        ids = labels = np.empty(0, np.int32)
        example_ids: list[str] = []
        for i in range(len(self.lengths)):
            more_ids, more_labels, example_id = self._read(handle, i)
            ids, labels = np.concatenate([ids, more_ids]), np.concatenate([labels, more_labels])
            example_ids = [*example_ids, example_id]
            while len(ids) >= max_length:
                yield _single_segment_row(ids[:max_length], labels[:max_length], example_ids)
                ids, labels = ids[max_length:], labels[max_length:]
                example_ids = [example_id] if len(ids) else []
        if len(ids):
            yield _single_segment_row(ids, labels, example_ids)


def _columns(examples_per_row: list[int], examples: list[SpooledExample]) -> dict[str, pa.Array]:
    """Lay out rows; row `k` takes the next `examples_per_row[k]` examples."""
    sizes = np.array([len(ids) for ids, _, _ in examples], np.int32)
    row_bounds = np.concatenate([[0], np.cumsum(examples_per_row)]).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    positions = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], sizes)
    tokens = {
        "input_ids": np.concatenate([ids for ids, _, _ in examples]),
        "labels": np.concatenate([labels for _, labels, _ in examples]),
        "position_ids": positions,
    }
    columns = {name: _lists(ends[row_bounds], values) for name, values in tokens.items()}
    example_ids = pa.ListArray.from_arrays(
        pa.array(row_bounds), pa.array([example_id for _, _, example_id in examples], pa.string())
    )
    return {**columns, "lengths": _lists(row_bounds, sizes), "example_ids": example_ids}


def _single_segment_row(
    ids: NDArray[np.int32], labels: NDArray[np.int32], example_ids: list[str]
) -> dict[str, pa.Array]:
    columns = _columns([1], [(ids, labels, "")])
    return {**columns, "example_ids": pa.array([example_ids], pa.list_(pa.string()))}


def _lists(bounds: NDArray[np.int32], values: NDArray[np.int32]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(values))


def fill_rate(rows: Dataset, num_tokens: int, max_length: int) -> float:
    """Return the fraction of row positions that hold a token."""
    return round(num_tokens / max(rows.num_rows * max_length, 1), 4)


def length_histogram(lengths: Iterable[int], max_length: int, bins: int = 20) -> dict[str, list[int]]:
    """Count examples by length: `edges` [bins + 1] in tokens, and `counts` [bins]."""
    counts, edges = np.histogram(np.fromiter(lengths, np.int32), bins=bins, range=(0, max_length))
    return {"edges": [round(edge) for edge in edges], "counts": counts.tolist()}
