"""Open a file of text, packed or not, and say what is wrong with one that is cut, no UTF-8, or no data at all.

Unpacking is pyarrow's: it tells a stream that was cut from one that ended, which `zstandard` does not.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline import limits
from tuneline.config.datasets.data_files import compression
from tuneline.data.ingest.readers.compression import DecompressedFile, RowTooLongError, line_number_at
from tuneline.errors import DataError, SourceError, TunelineError

BUFFER_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
SNIFF_BYTES = 64
"""Bytes by which a file is known for what it is."""

COMPRESSION_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
"""How packed files begin."""

PLACEHOLDERS = {
    b"version https://git-lfs": "a git-LFS pointer, not the data. Fetch the data with `git lfs pull`.",
    b"<!doctype html": "a web page, not data: most likely an error page. Download the file again.",
    b"<html": "a web page, not data: most likely an error page. Download the file again.",
}
"""What lies where data should, by how it begins."""

OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    b"\xfe\xff": "UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    b"\x1f\x8b": "packed with gzip, and its name does not say so. Add .gz to the name.",
    b"\x28\xb5\x2f\xfd": "packed with zstd, and its name does not say so. Add .zst to the name.",
    b"PK\x03\x04": "a zip archive. Unpack it.",
    b"PAR1": "a Parquet file, and its name does not say so. Name it .parquet.",
    b"ARROW1": "an Arrow file, and its name does not say so. Name it .arrow.",
    b"\xff\xff\xff\xff": "an Arrow file, and its name does not say so. Name it .arrow.",
}
"""What is no text, by how it begins."""


@contextmanager
def open_text(path: Path, *, by_line: bool = True) -> Iterator[io.BufferedReader]:
    """Open a file of text for reading bytes, unpacked, behind a byte order mark.

    Args:
        path: The file.
        by_line: A line feed ends a row; else whoever reads calls `end_row`.

    Raises:
        DataError: It is empty, or no UTF-8 (where whoever reads it decodes it as such), or a row is too long.
        SourceError: Something else lies in its place, or it was cut.
    """
    check_first_bytes(path)
    try:
        with open_decompressed(path, by_line=by_line) as file:
            head = file.peek(len(BOM))
            _check(path, head, OTHER_FORMATS)
            if b"\0" in head[:SNIFF_BYTES]:
                raise SourceError(f"{path}:1: this is no text in UTF-8: it holds zero bytes. Save it as UTF-8.")
            file.read(len(BOM) if head.startswith(BOM) else 0)
            yield file
    except TunelineError:
        raise
    except RowTooLongError as error:
        raise row_too_long_error(f"{path}:{line_number_at(path, error.offset)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _trouble(path, error) from None


def row_too_long_error(place: str) -> DataError:
    """Return the error of a row that is longer than the limit."""
    limit = limits.ROW_BYTES
    return DataError(
        f"{place}: the row is longer than {limit.shown()}. If line feeds are missing, write them; else divide the row, "
        f"or leave it out. {limit.advice()}"
    )


def check_first_bytes(path: Path) -> None:
    """Look whether data lies in a file at all, as far as its first bytes tell.

    Raises:
        DataError: It is empty.
        SourceError: A pointer or a web page lies there instead.
    """
    limits.check_file(path)
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    if not head:
        raise DataError(f"{path}:1: the file is empty. Give one with at least one row.")
    _check(path, head.lstrip().lower(), PLACEHOLDERS)


def _check(path: Path, head: bytes, others: dict[bytes, str]) -> None:
    for beginning, what in others.items():
        if head.startswith(beginning):
            raise SourceError(f"{path}:1: this is {what}")


def open_decompressed(path: Path, *, by_line: bool = True) -> io.BufferedReader:
    """Open a file for reading its bytes, unpacked where its name says that it is packed."""
    return io.BufferedReader(DecompressedFile(path, by_line=by_line), BUFFER_BYTES)


def _trouble(path: Path, error: Exception) -> TunelineError:
    """Read a file once more, up to the line at which it cannot be read."""
    num_read = offset = 0
    try:
        with open_decompressed(path) as file:
            for line in file:
                line.decode()
                num_read, offset = num_read + 1, offset + len(line)
    except UnicodeDecodeError as bad:
        return DataError(
            f"{path}:{num_read + 1}: byte {bad.object[bad.start]:#04x} at offset {offset + bad.start} is not UTF-8. "
            "Save the file as UTF-8 (`iconv -f latin1 -t utf-8` where it is Latin-1)."
        )
    except RowTooLongError:  # of one JSON list, whose rows share a line
        return SourceError(f"{path}:{num_read + 1}: the file cannot be read ({error}). Give one that can.")
    except OSError as cut:
        if num_read == 0 and not _begins_packed(path):
            return SourceError(
                f"{path}:1: this is not packed with {compression(path)}, though its name says so. Take "
                f"{path.suffix} off the name."
            )
        return SourceError(
            f"{path}:{num_read + 1}: the file cannot be unpacked beyond this line ({cut}). Most likely its download "
            "was interrupted: download it again."
        )
    return SourceError(f"{path}: the file cannot be read ({error}). Give one that can.")


def _begins_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(SNIFF_BYTES).startswith(COMPRESSION_MAGIC.get(compression(path) or "", b""))


def not_utf8_error(path: Path, error: UnicodeDecodeError) -> TunelineError:
    """Return the error of a file that holds bytes that are no UTF-8, with the first one's place."""
    return _trouble(path, error)
