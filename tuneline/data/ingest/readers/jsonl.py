"""Reader of JSON Lines, and the check that a row is one JSON object. Rows keep their own text, so no value is changed.

`orjson` parses each row. The slower `json` parses rows that `orjson` refuses or may have changed (duplicate keys), to
report the error.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from tuneline.data.ingest.readers.base import Chunk, group_into_chunks, make_bad_row
from tuneline.data.ingest.readers.text_stream import not_utf8_error, open_text
from tuneline.errors import DataError

WHITESPACE = " \t\r\n"
MAX_KEYS_BY_SEARCH = 64
"""Duplicate keys of a row with at most this many keys are found by text search, which is faster for few keys."""

LONE_SURROGATE = "a text holds a lone surrogate, so it is not valid Unicode"


def read_jsonl(path: Path) -> Iterator[Chunk]:
    """Read JSON Lines; only a line feed ends a line, not other Unicode separators (U+2029)."""
    with open_text(path) as file:
        lines = ((number, line.strip(WHITESPACE.encode()) or None) for number, line in enumerate(file, start=1))
        yield from group_into_chunks(lines, lambda line, text: check_row(path, line, text))


def check_row(path: Path, line: int, text: bytes) -> bytes:
    """Return the text of a row after checking that it is a JSON object.

    Raises:
        DataError: It is not a JSON object, has a value that JSON does not support, or a duplicate key.
    """
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        _check_strictly(path, line, text)
        return make_bad_row(LONE_SURROGATE)  # the only text that orjson refuses and `_check_strictly` accepts
    if not isinstance(row, dict):
        raise _not_an_object_error(path, line, row)
    if len(row) > MAX_KEYS_BY_SEARCH or any(text.count(_quote(key)) > 1 for key in row):
        _check_strictly(path, line, text)
    return text


@lru_cache(4096)
def _quote(key: str) -> bytes:
    return orjson.dumps(key)


def _check_strictly(path: Path, line: int, text: bytes) -> None:
    """Parse a row with Python's parser, and refuse duplicate keys, NaN and infinities."""
    try:
        row = json.loads(
            text.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise not_utf8_error(path, error) from None
    except json.JSONDecodeError as error:
        raise (
            _multiline_error(path, line, text) if text in (b"[", b"{") else invalid_json_error(path, line, error)
        ) from None
    except (ValueError, RecursionError) as error:
        raise unreadable_row_error(path, line, error) from None
    if not isinstance(row, dict):
        raise _not_an_object_error(path, line, row)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        duplicate, _ = next(iter((Counter(key for key, _ in pairs) - Counter(row.keys())).items()))
        raise ValueError(f"duplicate key {duplicate!r} in one object; one of its values would be lost")
    return row


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number; use null for a missing value")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits:.40} is too large")
    return number


def _not_an_object_error(path: Path, line: int, row: object) -> DataError:
    hint = " Rename the file to .json if it holds one list." if isinstance(row, list) and ".jsonl" in path.name else ""
    return DataError(f"{path}:{line}: a row must be a JSON object, got {type(row).__name__} {row!r:.60}.{hint}")


def _multiline_error(path: Path, line: int, text: bytes) -> DataError:
    return DataError(
        f"{path}:{line}: the line holds only {text.decode()!r}, but JSON Lines have one object per line. Rename the "
        "file to .json if it holds one list."
    )


def unreadable_row_error(path: Path, line: int, error: ValueError | RecursionError) -> DataError:
    """Build the error of a row that is JSON but cannot be read."""
    reason = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{path}:{line}: {reason}. Fix the row.")


def invalid_json_error(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    """Build the error of a text that begins at `line` and is not valid JSON."""
    near = error.doc[max(0, error.pos - 20) : error.pos + 20].strip()
    place = f"{path}:{line + error.lineno - 1}"
    is_truncated = error.msg.startswith("Unterminated string") or error.pos >= len(error.doc.rstrip())
    advice = (
        "The text ends inside a row: complete it, or download the file again."
        if is_truncated
        else "Correct the syntax there."
    )
    return DataError(f"{place}: not valid JSON: {error.msg} at column {error.colno}, near {near!r}. {advice}")
