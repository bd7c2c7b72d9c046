"""What readers share: chunks of rows, and the row that says what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import orjson

from tuneline.data import schema

ROWS_PER_CHUNK = 256
"""Rows of a text file that are in memory at once: some may be megabytes long."""

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Rows that were found in a file and not yet read, so that counting them costs little."""

    lines: Sequence[int]
    """Lines at which they begin, from 1."""

    read: Callable[[Sequence[int]], list[bytes]]
    """Returns the JSON texts of the rows at these positions of the chunk."""

    num_blank: int = 0
    """Blank lines between them."""


def group_into_chunks(rows: Iterable[tuple[int, T | None]], read: Callable[[int, T], bytes]) -> Iterator[Chunk]:
    """Make chunks of rows that are found one after the other.

    Args:
        rows: The line of each row with what lies there; None for a blank line.
        read: Makes a JSON text of a line and what lies there.
    """
    waiting = iter(rows)
    while part := list(islice(waiting, ROWS_PER_CHUNK)):
        yield _chunk([(line, item) for line, item in part if item is not None], read, len(part))


def _chunk(rows: list[tuple[int, T]], read: Callable[[int, T], bytes], num_lines: int) -> Chunk:
    return Chunk(
        lines=[line for line, _ in rows],
        read=lambda positions: [read(*rows[i]) for i in positions],
        num_blank=num_lines - len(rows),
    )


def make_bad_row(reason: str) -> bytes:
    """Return the text of a row that cannot be used."""
    return orjson.dumps({schema.BAD_ROW_KEY: reason})
