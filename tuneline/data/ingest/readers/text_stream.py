"""Opens text files, compressed or not, and reports files that are truncated, not UTF-8, or not data.

pyarrow decompresses, because it detects a truncated stream, which `zstandard` does not.
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
"""First bytes of a file, by which its type is detected."""

COMPRESSION_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
"""First bytes of compressed files."""

PLACEHOLDERS = {
    b"version https://git-lfs": "a git-LFS pointer, not the data. Fetch the data with `git lfs pull`.",
    b"<!doctype html": "a web page, not data; most likely an error page. Download the file again.",
    b"<html": "a web page, not data; most likely an error page. Download the file again.",
}
"""Files that take the place of the data, by their first bytes."""

OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    b"\xfe\xff": "UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    b"\x1f\x8b": "compressed with gzip, but its name does not end in .gz. Add .gz to the name.",
    b"\x28\xb5\x2f\xfd": "compressed with zstd, but its name does not end in .zst. Add .zst to the name.",
    b"PK\x03\x04": "a zip archive. Extract it.",
    b"PAR1": "a Parquet file, but its name does not end in .parquet. Rename it to .parquet.",
    b"ARROW1": "an Arrow file, but its name does not end in .arrow. Rename it to .arrow.",
    b"\xff\xff\xff\xff": "an Arrow file, but its name does not end in .arrow. Rename it to .arrow.",
}
"""Files that are not text, by their first bytes."""


@contextmanager
def open_text(path: Path, *, by_line: bool = True) -> Iterator[io.BufferedReader]:
    """Open a text file for reading decompressed bytes, after a byte order mark.

    Args:
        path: The file.
        by_line: Whether a line feed ends a row; if false, the caller calls `end_row`.

    Raises:
        DataError: The file is empty or not UTF-8 (if the caller decodes it), or a row is too long.
        SourceError: The file is truncated, or is not data.
    """
    check_first_bytes(path)
    try:
        with open_decompressed(path, by_line=by_line) as file:
            head = file.peek(len(BOM))
            _check(path, head, OTHER_FORMATS)
            if b"\0" in head[:SNIFF_BYTES]:
                raise SourceError(f"{path}:1: not UTF-8 text: the file holds zero bytes. Save it as UTF-8.")
            file.read(len(BOM) if head.startswith(BOM) else 0)
            yield file
    except TunelineError:
        raise
    except RowTooLongError as error:
        raise row_too_long_error(f"{path}:{line_number_at(path, error.offset)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable_file_error(path, error) from None


def row_too_long_error(place: str) -> DataError:
    """Build the error of a row that is longer than the limit."""
    limit = limits.ROW_BYTES
    return DataError(
        f"{place}: the row is longer than {limit.to_text()}. Add missing line feeds, or split or remove the row. "
        f"{limit.advice()}"
    )


def check_first_bytes(path: Path) -> None:
    """Check by its first bytes that a file holds data.

    Raises:
        DataError: The file is empty.
        SourceError: The file is a git-LFS pointer or a web page.
    """
    limits.check_file(path)
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    if not head:
        raise DataError(f"{path}:1: the file is empty. Use a file with at least one row.")
    _check(path, head.lstrip().lower(), PLACEHOLDERS)


def _check(path: Path, head: bytes, other_types: dict[bytes, str]) -> None:
    for beginning, description in other_types.items():
        if head.startswith(beginning):
            raise SourceError(f"{path}:1: the file is {description}")


def open_decompressed(path: Path, *, by_line: bool = True) -> io.BufferedReader:
    """Open a file for reading its bytes, decompressed if its name ends in .gz or .zst."""
    return io.BufferedReader(DecompressedFile(path, by_line=by_line), BUFFER_BYTES)


def _unreadable_file_error(path: Path, error: Exception) -> TunelineError:
    """Read a file again to find the line that cannot be read, and build the error."""
    num_read = offset = 0
    try:
        with open_decompressed(path) as file:
            for line in file:
                line.decode()
                num_read, offset = num_read + 1, offset + len(line)
    except UnicodeDecodeError as decode_error:
        return DataError(
            f"{path}:{num_read + 1}: byte {decode_error.object[decode_error.start]:#04x} at offset "
            f"{offset + decode_error.start} is not UTF-8. Save the file as UTF-8 (`iconv -f latin1 -t utf-8` if it is "
            "Latin-1)."
        )
    except RowTooLongError:  # a JSON list with all rows on one line
        return SourceError(f"{path}:{num_read + 1}: the file cannot be read ({error}). Use another copy.")
    except OSError as read_error:
        if num_read == 0 and not _is_compressed(path):
            return SourceError(
                f"{path}:1: the file is not compressed with {compression(path)}, although its name ends in "
                f"{path.suffix}. Remove {path.suffix} from the name."
            )
        return SourceError(
            f"{path}:{num_read + 1}: the file cannot be decompressed after this line ({read_error}). Most likely its "
            "download was interrupted: download it again."
        )
    return SourceError(f"{path}: the file cannot be read ({error}). Use another copy.")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(SNIFF_BYTES).startswith(COMPRESSION_MAGIC.get(compression(path) or "", b""))


def not_utf8_error(path: Path, error: UnicodeDecodeError) -> TunelineError:
    """Build the error of a file with bytes that are not UTF-8, with the place of the first one."""
    return _unreadable_file_error(path, error)
