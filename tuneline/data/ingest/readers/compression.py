"""The bytes of a file, unpacked, with two limits: on one row, and on how much a small file may unpack to.

Counting costs nothing that can be measured: it is done once a buffer, not once a line.
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
"""Bytes at the end of a buffer that are looked at first for the end of a line."""


class RowTooLongError(Exception):
    """A row is longer than the limit; `offset` is where it begins."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the row at byte {offset} is too long")
        self.offset = offset


class DecompressedFile(io.RawIOBase):
    """A file as bytes, unpacked where its name says that it is packed.

    Args:
        path: A plain file.
        by_line: A line feed ends a row. Else whoever reads calls `end_row`.
    """

    def __init__(self, path: Path, *, by_line: bool) -> None:
        super().__init__()
        self._path, self._by_line = path, by_line
        self._file = pa.input_stream(str(path), compression=compression(path))
        self._num_read = self._row_begin = 0
        self._longest_row = limits.ROW_BYTES.value()
        self._most = _most_unpacked(path) if compression(path) else None

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()

    def end_row(self) -> None:
        """Begin to count anew: what was read so far belongs to rows that are complete."""
        self._row_begin = self._num_read

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into a buffer; returns how many bytes.

        Raises:
            RowTooLongError: A row is longer than the limit.
            SourceError: The file unpacks to more than its size allows.
        """
        view = memoryview(buffer)
        num_bytes = int(self._file.readinto(view))
        before, self._num_read = self._num_read, self._num_read + num_bytes
        if self._by_line and (end := _last_line_feed(view[:num_bytes])) >= 0:
            self._row_begin = before + end + 1
        if self._num_read - self._row_begin > self._longest_row:
            raise RowTooLongError(self._row_begin)
        if self._most is not None and self._num_read > self._most:
            raise decompressed_size_error(self._path)
        return num_bytes


def row_end_callback(file: io.BufferedReader) -> Callable[[], None]:
    """Return what tells the file below a buffer that a row is complete."""
    return cast("Unpacked", file.raw).end_row


def _last_line_feed(view: memoryview) -> int:
    """Return the position of the last line feed, or -1; most often it is near the end."""
    start = max(0, len(view) - TAIL_BYTES)
    if (end := bytes(view[start:]).rfind(b"\n")) >= 0:
        return start + end
    return bytes(view[:start]).rfind(b"\n")


def _most_unpacked(path: Path) -> int:
    return max(limits.UNPACKED_BYTES.value(), limits.UNPACKED_RATIO.value() * path.stat().st_size)


def check_decompressed_size(path: Path, num_bytes: int) -> None:
    """Check the size to which a file says that it unpacks.

    Raises:
        SourceError: It is more than the file's own size allows.
    """
    if num_bytes > _most_unpacked(path):
        raise decompressed_size_error(path)


def decompressed_size_error(path: Path) -> SourceError:
    """Return the error of a file that unpacks to more than its size allows."""
    ratio = limits.UNPACKED_RATIO
    return SourceError(
        f"{path}: its {path.stat().st_size:,} bytes unpack to more than {limits.UNPACKED_BYTES.shown()}, and to more "
        f"than {ratio.shown()} times its size, as no text does. Give the data themselves. {ratio.advice()}"
    )


def line_number_at(path: Path, offset: int) -> int:
    """Return the number of the line that begins at a byte of the unpacked file."""
    line, rest = 1, offset
    with pa.input_stream(str(path), compression=compression(path)) as file:
        while rest and (part := file.read(min(rest, 1 << 20))):
            line, rest = line + part.count(b"\n"), rest - len(part)
    return line
