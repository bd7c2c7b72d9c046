"""JSON Lines, and the proof that a row is one JSON object. Rows keep their own text, so that no value is retyped.

`orjson` proves; what it refuses, or may have lost (a key that stands twice), the slower `json` looks at and names.
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
"""Of a row with more, its text would be searched too often."""

LONE_SURROGATE = "a text holds half of a surrogate pair, so it is no Unicode text"


def read_jsonl(path: Path) -> Iterator[Chunk]:
    """Read JSON Lines; only a line feed ends a line, not what else Unicode has (U+2029)."""
    with open_text(path) as file:
        lines = ((number, line.strip(WHITESPACE.encode()) or None) for number, line in enumerate(file, start=1))
        yield from group_into_chunks(lines, lambda line, text: check_row(path, line, text))


def check_row(path: Path, line: int, text: bytes) -> bytes:
    """Return the text of a row once it is known to be a JSON object.

    Raises:
        DataError: It is none, holds what JSON has no word for, or a key twice.
    """
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        _parsed(path, line, text)
        return make_bad_row(LONE_SURROGATE)  # nothing else is refused by orjson and not by `_parsed`
    if not isinstance(row, dict):
        raise _no_object(path, line, row)
    if len(row) > MAX_KEYS_BY_SEARCH or any(text.count(_quoted(key)) > 1 for key in row):
        _parsed(path, line, text)
    return text


@lru_cache(4096)
def _quoted(key: str) -> bytes:
    return orjson.dumps(key)


def _parsed(path: Path, line: int, text: bytes) -> None:
    """Parse a row with all that Python's parser can be made to refuse."""
    try:
        row = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise not_utf8_error(path, error) from None
    except json.JSONDecodeError as error:
        raise _over_lines(path, line, text) if text in (b"[", b"{") else invalid_json_error(path, line, error) from None
    except (ValueError, RecursionError) as error:
        raise unreadable_row_error(path, line, error) from None
    if not isinstance(row, dict):
        raise _no_object(path, line, row)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice, _ = next(iter((Counter(key for key, _ in pairs) - Counter(row.keys())).items()))
        raise ValueError(f"the key {twice!r} stands twice in one object, so one of its values would be lost")
    return row


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON number; null stands for a missing one")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits:.40} is too large")
    return number


def _no_object(path: Path, line: int, row: object) -> DataError:
    hint = " Name the file .json if it holds one list." if isinstance(row, list) and ".jsonl" in path.name else ""
    return DataError(f"{path}:{line}: a row must be a JSON object, got {type(row).__name__} {row!r:.60}.{hint}")


def _over_lines(path: Path, line: int, text: bytes) -> DataError:
    return DataError(
        f"{path}:{line}: the line holds {text.decode()!r} alone, and JSON Lines have one whole object a line. Name the "
        "file .json if it holds one list."
    )


def unreadable_row_error(path: Path, line: int, error: ValueError | RecursionError) -> DataError:
    """Return the error for a row that is JSON and still cannot be read."""
    why = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{path}:{line}: {why}. Mend the row.")


def invalid_json_error(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    """Return the error of a text that begins at a line and is no JSON."""
    near = error.doc[max(0, error.pos - 20) : error.pos + 20].strip()
    place = f"{path}:{line + error.lineno - 1}"
    ends = error.msg.startswith("Unterminated string") or error.pos >= len(error.doc.rstrip())
    remedy = "The text ends inside a row: write it whole, or download it again." if ends else "Correct it there."
    return DataError(f"{place}: not valid JSON: {error.msg} at column {error.colno}, near {near!r}. {remedy}")
