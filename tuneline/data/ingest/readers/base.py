"""Chunks of rows, and the row that represents a malformed record."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import orjson

from tuneline.data import schema

ROWS_PER_CHUNK = 256
"""Rows of a text file in memory at once; a single row may have megabytes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Rows of a file that are located but not yet parsed, so that counting them is cheap."""

    lines: Sequence[int]
    """Lines at which the rows begin, from 1."""

    read: Callable[[Sequence[int]], list[bytes]]
    """Returns the JSON texts of the rows at these positions of the chunk."""

    num_blank: int = 0
    """Blank lines between the rows."""


def group_into_chunks(rows: Iterable[tuple[int, T | None]], read: Callable[[int, T], bytes]) -> Iterator[Chunk]:
    """Group a stream of rows into chunks.

    Args:
        rows: The line and the content of each row; None as the content of a blank line.
        read: Converts a line and its content to a JSON text.
    """
    remaining = iter(rows)
    while part := list(islice(remaining, ROWS_PER_CHUNK)):
        yield _chunk([(line, item) for line, item in part if item is not None], read, len(part))


def _chunk(rows: list[tuple[int, T]], read: Callable[[int, T], bytes], num_lines: int) -> Chunk:
    return Chunk(
        lines=[line for line, _ in rows],
        read=lambda positions: [read(*rows[i]) for i in positions],
        num_blank=num_lines - len(rows),
    )


def make_bad_row(reason: str) -> bytes:
    """Return the JSON text of a row that represents a malformed record."""
    return orjson.dumps({schema.BAD_ROW_KEY: reason})
