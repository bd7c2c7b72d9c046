"""How data sets are mixed: one after another, or drawn in turn by their weights."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.config.sections.data import MergeConfig, SourceShare
from tuneline.data import corpus, schema
from tuneline.errors import DataError

SourceOrder = NDArray[np.int16]
RowMask = NDArray[np.bool_]

_DRAWS_AT_ONCE = 2**16


def draw_order(sizes: list[int], shares: list[SourceShare], config: MergeConfig) -> SourceOrder:
    """Return for each row of the mixture the position of the data set that it is taken from.

    The same lengths, weights and seed give the order of `datasets.interleave_datasets`, which for half a million rows
    takes 7 seconds and 870 bytes a row; this takes 0.02 seconds and 12 bytes.

    Args:
        sizes: Examples of each data set.
        shares: Names, repeats and weights of the data sets; a weight that is left out counts 1.
        config: Strategy and seed.

    Raises:
        DataError: A data set that is to be interleaved has no rows.
    """
    lengths = [size * share.repeats for size, share in zip(sizes, shares, strict=True)]
    if config.strategy == "concatenate":
        return concatenate_order(lengths)
    for length, share in zip(lengths, shares, strict=True):
        if not length:
            raise DataError(
                f"{share.name} has no example of its own to train on, so merge.strategy {config.strategy!r} cannot "
                "draw from it. Leave it out of sources."
            )
    return _drawn(np.array(lengths), shares, config)


def concatenate_order(lengths: list[int]) -> SourceOrder:
    """Return the order of data sets one after another."""
    return np.repeat(np.arange(len(lengths), dtype=np.int16), lengths)


def _drawn(lengths: NDArray[np.int64], shares: list[SourceShare], config: MergeConfig) -> SourceOrder:
    weights = np.array([1.0 if share.weight is None else share.weight for share in shares])
    enough = np.any if config.strategy == "interleave_under" else np.all
    rng = np.random.default_rng(config.mix_seed)
    parts, counts = list[SourceOrder](), np.zeros(len(lengths), np.int64)
    while not enough(counts >= lengths):
        drawn = rng.choice(len(lengths), size=_DRAWS_AT_ONCE, p=weights / weights.sum()).astype(np.int16)
        parts.append(drawn)
        counts += np.bincount(drawn, minlength=len(lengths))
    draws = np.concatenate(parts)
    used_up = [np.flatnonzero(draws == i)[length - 1] for i, length in enumerate(lengths) if counts[i] >= length]
    last = min(used_up) if config.strategy == "interleave_under" else max(used_up)
    return draws[: last + 1]


def write_mixture(examples: list[Dataset], chosen: list[RowMask], order: SourceOrder) -> Dataset:
    """Write the chosen examples in the given order; a data set that is used up begins anew, its copies counted up.

    Args:
        examples: Rows of `EXAMPLE`, one data set each.
        chosen: For each data set, which of its rows take part.
        order: Of each row to write, the position of its data set.

    Returns:
        Rows of `MIXED`.
    """
    taps = [_BatchReader(_passes(rows, mask)) for rows, mask in zip(examples, chosen, strict=True)]
    with corpus.RowWriter(schema.MIXED) as writer:
        for start in range(0, len(order), corpus.BATCH_ROWS):
            for batch in _next_rows(taps, order[start : start + corpus.BATCH_ROWS]):
                writer.write_batch(batch)
    return writer.rows()


def _next_rows(taps: list["_Tap"], order: SourceOrder) -> list[pa.RecordBatch]:
    counts = np.bincount(order, minlength=len(taps))
    table = pa.Table.from_batches([part for tap, wanted in zip(taps, counts, strict=True) for part in tap.take(wanted)])
    by_source = np.argsort(order, kind="stable")
    return table.take(pa.array(np.argsort(by_source))).combine_chunks().to_batches()


def _passes(rows: Dataset, chosen: RowMask) -> Iterator[pa.RecordBatch]:
    """Yield the chosen rows over and over, with `copy` counting the passes."""
    for copy in count():
        start = 0
        for batch in corpus.iter_batches(rows):
            kept = batch.filter(pa.array(chosen[start : start + batch.num_rows]))
            start += batch.num_rows
            copies = pa.array(np.full(kept.num_rows, copy, np.int32))
            yield pa.RecordBatch.from_arrays([*kept.columns, copies], schema=schema.MIXED.arrow_schema)


class _BatchReader:
    """Take so many rows at a time from a stream of batches."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, wanted: int) -> list[pa.RecordBatch]:
        """Return the next rows."""
        parts = []
        while wanted:
            if not self._rest:
                self._rest = next(self._batches)
            part, self._rest = self._rest.slice(0, wanted), self._rest.slice(wanted)
            parts.append(part)
            wanted -= part.num_rows
        return parts
