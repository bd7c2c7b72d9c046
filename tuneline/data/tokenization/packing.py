"""Packing: several short examples share one training row without attending to each other.

Best-fit decreasing: longest examples first, each into the fullest row with enough space.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_fit_decreasing(lengths: ArrayLike, capacity: int) -> list[NDArray[np.int64]]:
    """Group examples into rows.

    Args:
        lengths: Tokens per example, [examples], each at most `capacity`.
        capacity: Maximum number of tokens per row.

    Returns:
        Rows of indices into `lengths`, each ascending; every index appears exactly once.

    Raises:
        ValueError: An example is longer than a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size == 0:
        return []
    if sizes.max() > capacity:
        raise ValueError(f"An example of {sizes.max()} tokens does not fit a row of {capacity} tokens.")
    row_of = _assign(sizes, capacity)
    order = np.argsort(row_of, kind="stable")
    bounds = np.cumsum(np.bincount(row_of))[:-1]
    return np.split(order, bounds)


def _assign(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int32]:
    """Return the row of each example.

    Open rows are in buckets by their free tokens; bit `n` of `open_buckets` is set if bucket `n` has a row, so the
    fullest row that fits is found by one shift and the lowest set bit.
    """
    row_of = np.empty(len(sizes), np.int32)
    buckets: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_buckets, num_rows = 0, 0
    order = np.argsort(-sizes, kind="stable")
    for i, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = open_buckets >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            bucket = buckets[free]
            row = bucket.pop()
            if not bucket:
                open_buckets ^= 1 << free
        else:
            free, row = capacity, num_rows
            num_rows += 1
        row_of[i] = row
        free -= size
        if free:
            buckets[free].append(row)
            open_buckets |= 1 << free
    return row_of
