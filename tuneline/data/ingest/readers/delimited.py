"""Reader of CSV and TSV: the first record names the columns, and every value is a text.

It uses Python's parser in strict mode, because that parser reports the line of each record. A record that cannot be
parsed, has another number of fields than the header, or is blank becomes a bad row. Torn files have thousands of these,
so that `align` refuses them.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tuneline.data.ingest.readers.base import Chunk, group_into_chunks, make_bad_row
from tuneline.data.ingest.readers.compression import RowTooLongError, row_end_callback
from tuneline.data.ingest.readers.text_stream import open_text, row_too_long_error
from tuneline.errors import DataError

if TYPE_CHECKING:
    import _csv

MAX_FIELD_CHARS = 1 << 24
"""Maximum length of a field; a longer field is missing its closing quote."""

DELIMITERS = ",;\t|"


def read_delimited(path: Path, delimiter: str) -> Iterator[Chunk]:
    """Read the records of a CSV file."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    with open_text(path, by_line=False) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        records = _records(path, csv.reader(text, delimiter=delimiter, strict=True), row_end_callback(file))
        header = _read_header(path, records, delimiter)
        is_empty = True
        for chunk in group_into_chunks(records, lambda _, fields: _to_json(header, fields)):
            is_empty = is_empty and not chunk.lines
            yield chunk
        if is_empty:
            raise DataError(f"{path}:1: the file has a header but no rows. Use a file with at least one row.")


def _records(
    path: Path, reader: "_csv.Reader", end_row: Callable[[], None]
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield the line of each record with its fields, None for a blank line, or the error of a malformed record."""
    while True:
        end_row()
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield line, f"a CSV record that cannot be parsed ({error})"
            continue
        except RowTooLongError:
            raise row_too_long_error(f"{path}:{line}") from None
        if fields is None:
            return
        yield line, fields or None


def _read_header(path: Path, records: Iterator[tuple[int, list[str] | str | None]], delimiter: str) -> list[str]:
    line, header = next(((line, fields) for line, fields in records if fields is not None), (1, None))
    if not isinstance(header, list):
        raise DataError(
            f"{path}:{line}: the header is missing ({header or 'blank lines only'}). Add a line with the column names."
        )
    duplicates = [name for name, count in Counter(header).items() if count > 1]
    if duplicates:
        raise DataError(f"{path}:{line}: two columns are named {duplicates[0]!r}. Rename one.")
    others = [sign for sign in DELIMITERS if sign != delimiter and sign in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{path}:{line}: the header has one column, {header[0]!r:.60}; the delimiter seems to be {others[0]!r}. "
            "Use commas in .csv files and tabs in .tsv files."
        )
    return header


def _to_json(header: list[str], fields: list[str] | str) -> bytes:
    if isinstance(fields, str):
        return make_bad_row(fields)
    if not any(field.strip() for field in fields):
        return make_bad_row("a CSV record with blank fields only")
    if len(fields) != len(header):
        return make_bad_row(f"a CSV record with {len(fields)} fields, but the header has {len(header)}")
    return orjson.dumps(dict(zip(header, fields, strict=True)))
