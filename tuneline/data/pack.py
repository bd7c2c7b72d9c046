"""Packing: several short examples share one training row, each blind to the others.

Best-fit decreasing: the longest example first, each into the fullest row that still holds it.
"""

from bisect import bisect_left, insort


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Group examples into rows.

    Args:
        lengths: Tokens in each example, each at most `capacity`.
        capacity: Tokens in a row.

    Returns:
        Rows of indices into `lengths`, each ascending; every index appears exactly once.

    Raises:
        ValueError: An example is longer than a row.
    """
    longest = max(lengths, default=0)
    if longest > capacity:
        raise ValueError(f"An example of {longest} tokens cannot fit a row of {capacity}.")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[i], -1))
        if place == len(room):
            rows.append([i])
            insort(room, (capacity - lengths[i], len(rows) - 1))
            continue
        free, row = room.pop(place)
        rows[row].append(i)
        insort(room, (free - lengths[i], row))
    return [sorted(row) for row in rows]
