"""CSV and TSV: the first record names the columns, every value is a text.

Python's parser, in its strict mode, because it tells the line of each record. A record that it refuses, one with
another number of fields than the header, and one that is blank all through is a row that says so: torn files show up as
thousands of these, and are refused by `align` rather than trained on.
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
"""Characters of a field; a longer one has lost its closing quote."""

DELIMITERS = ",;\t|"


def read_delimited(path: Path, delimiter: str) -> Iterator[Chunk]:
    """Read the records of a CSV file."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    with open_text(path, by_line=False) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        found = _found(path, csv.reader(text, delimiter=delimiter, strict=True), row_end_callback(file))
        header = _header(path, found, delimiter)
        empty = True
        for chunk in group_into_chunks(found, lambda _, fields: _text(header, fields)):
            empty = empty and not chunk.lines
            yield chunk
        if empty:
            raise DataError(f"{path}:1: there is a header and no row. Give a file with at least one row.")


def _found(path: Path, reader: "_csv.Reader", end: Callable[[], None]) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield the line and the fields of each record, None for a blank line, or what is wrong."""
    while True:
        end()
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield line, f"a CSV record that does not parse ({error})"
            continue
        except RowTooLongError:
            raise row_too_long_error(f"{path}:{line}") from None
        if fields is None:
            return
        yield line, fields or None


def _header(path: Path, found: Iterator[tuple[int, list[str] | str | None]], delimiter: str) -> list[str]:
    line, header = next(((line, fields) for line, fields in found if fields is not None), (1, None))
    if not isinstance(header, list):
        raise DataError(f"{path}:{line}: there is no header ({header or 'blank lines only'}). Name the columns there.")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}:{line}: two columns are called {twice[0]!r}. Give each a name of its own.")
    used = [sign for sign in DELIMITERS if sign != delimiter and sign in header[0]]
    if len(header) == 1 and used:
        raise DataError(
            f"{path}:{line}: the header is one column, {header[0]!r:.60}; {used[0]!r} seems to divide it. Divide .csv "
            "by commas and .tsv by tabs."
        )
    return header


def _text(header: list[str], fields: list[str] | str) -> bytes:
    if isinstance(fields, str):
        return make_bad_row(fields)
    if not any(field.strip() for field in fields):
        return make_bad_row("a CSV record whose fields are all blank")
    if len(fields) != len(header):
        return make_bad_row(f"a CSV record with {len(fields)} fields where the header has {len(header)}")
    return orjson.dumps(dict(zip(header, fields, strict=True)))
