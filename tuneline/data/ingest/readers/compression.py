"""Decompressed files with two limits: on the bytes of one row, and on the decompressed size of a file.

Bytes are counted once per buffer, not once per line, so that the cost is negligible.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from tuneline import limits
from tuneline.config.datasets.data_files import compression
from tuneline.errors import SourceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TAIL_BYTES = 1 << 12
"""Bytes at the end of a buffer that are searched first for a line feed."""


class RowTooLongError(Exception):
    """A row is longer than the limit; `offset` is the byte at which it begins."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the row at byte {offset} is too long")
        self.offset = offset


class DecompressedFile(io.RawIOBase):
    """The bytes of a file, decompressed if its name ends in .gz or .zst.

    Args:
        path: A regular file.
        by_line: Whether a line feed ends a row. If false, the caller calls `end_row`.
    """

    def __init__(self, path: Path, *, by_line: bool) -> None:
        super().__init__()
        self._path, self._by_line = path, by_line
        self._file = pa.input_stream(str(path), compression=compression(path))
        self._num_read = self._row_begin = 0
        self._max_row_bytes = limits.ROW_BYTES.value()
        self._max_bytes = _max_decompressed_bytes(path) if compression(path) else None

    def readable(self) -> bool:
        """Return true."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()

    def end_row(self) -> None:
        """Mark the end of a row: the bytes so far belong to complete rows."""
        self._row_begin = self._num_read

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into a buffer and return the number of bytes.

        Raises:
            RowTooLongError: A row is longer than the limit.
            SourceError: The decompressed size exceeds the limit for the file's size.
        """
        view = memoryview(buffer)
        num_bytes = int(self._file.readinto(view))
        before, self._num_read = self._num_read, self._num_read + num_bytes
        if self._by_line and (end := _last_line_feed(view[:num_bytes])) >= 0:
            self._row_begin = before + end + 1
        if self._num_read - self._row_begin > self._max_row_bytes:
            raise RowTooLongError(self._row_begin)
        if self._max_bytes is not None and self._num_read > self._max_bytes:
            raise decompressed_size_error(self._path)
        return num_bytes


def row_end_callback(file: io.BufferedReader) -> Callable[[], None]:
    """Return a function that marks the end of a row in the `DecompressedFile` below a buffer."""
    return cast("DecompressedFile", file.raw).end_row


def _last_line_feed(view: memoryview) -> int:
    """Return the position of the last line feed, or -1. It is usually near the end."""
    start = max(0, len(view) - TAIL_BYTES)
    if (end := bytes(view[start:]).rfind(b"\n")) >= 0:
        return start + end
    return bytes(view[:start]).rfind(b"\n")


def _max_decompressed_bytes(path: Path) -> int:
    return max(limits.UNPACKED_BYTES.value(), limits.UNPACKED_RATIO.value() * path.stat().st_size)


def check_decompressed_size(path: Path, num_bytes: int) -> None:
    """Check the decompressed size that the metadata of a file state.

    Raises:
        SourceError: The decompressed size exceeds the limit for the file's size.
    """
    if num_bytes > _max_decompressed_bytes(path):
        raise decompressed_size_error(path)


def decompressed_size_error(path: Path) -> SourceError:
    """Build the error of a file whose decompressed size exceeds the limit for its size."""
    ratio = limits.UNPACKED_RATIO
    return SourceError(
        f"{path}: its {path.stat().st_size:,} bytes decompress to more than {limits.UNPACKED_BYTES.to_text()} and more "
        f"than {ratio.to_text()} times its size, which is unusual for text. Use the decompressed data. {ratio.advice()}"
    )


def line_number_at(path: Path, offset: int) -> int:
    """Return the number of the line that begins at a byte of the decompressed file."""
    line, rest = 1, offset
    with pa.input_stream(str(path), compression=compression(path)) as file:
        while rest and (part := file.read(min(rest, 1 << 20))):
            line, rest = line + part.count(b"\n"), rest - len(part)
    return line
