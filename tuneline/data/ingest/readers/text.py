"""Plain text: each line is a row with one column, `text`. A JSON file named .txt is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import orjson

from tuneline.data.ingest.readers.base import Chunk, group_into_chunks
from tuneline.data.ingest.readers.text_stream import open_text
from tuneline.errors import DataError

NUM_SNIFFED_LINES = 100
"""First lines of a file that are checked for JSON."""


def read_text(path: Path) -> Iterator[Chunk]:
    """Read lines, which only a line feed ends. Lines of white space are blank."""
    with open_text(path) as file:
        _refuse_json(path, file.peek())
        lines = ((number, line.decode().rstrip("\r\n")) for number, line in enumerate(file, start=1))
        rows = ((number, None if not text.strip() else text) for number, text in lines)
        yield from group_into_chunks(rows, lambda _, text: orjson.dumps({"text": text}))


def _refuse_json(path: Path, head: bytes) -> None:
    """Check that the beginning of a file, whose last line may be incomplete, is not JSON.

    Raises:
        DataError: All lines are JSON objects, or the file begins with a JSON list or object.
    """
    lines = [line.strip() for line in head.split(b"\n")[:NUM_SNIFFED_LINES]]
    lines = [line for line in lines[:-1] or lines if line]
    if lines and all(_is_object(line) for line in lines):
        raise _json_error(path, "its lines are JSON objects", ".jsonl")
    beginning = b"".join(lines[:2])
    if beginning.startswith(b"[{") or (lines[:1] == [b"{"] and beginning.startswith(b'{"')):
        raise _json_error(path, "it holds one JSON value", ".json")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_error(path: Path, actual: str, suffix: str) -> DataError:
    return DataError(
        f"{path}:1: {actual}, but a .txt file is read as plain text, one row per line. Rename the file to {suffix}; to "
        "train on the JSON itself, write it as text into a column `text`."
    )
