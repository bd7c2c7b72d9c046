"""Plain text: each line is a row with one column, `text`. A file of JSON under this name is refused for what it is."""

import json
from collections.abc import Iterator
from pathlib import Path

import orjson

from tuneline.data.ingest.readers.base import Chunk, group_into_chunks
from tuneline.data.ingest.readers.text_stream import open_text
from tuneline.errors import DataError

NUM_SNIFFED_LINES = 100
"""Lines at the beginning of a file that are looked at for JSON."""


def read_text(path: Path) -> Iterator[Chunk]:
    """Read lines; only a line feed ends one. Those without a visible sign are blank."""
    with open_text(path) as file:
        _refuse_json(path, file.peek())
        lines = ((number, line.decode().rstrip("\r\n")) for number, line in enumerate(file, start=1))
        rows = ((number, None if not text.strip() else text) for number, text in lines)
        yield from group_into_chunks(rows, lambda _, text: orjson.dumps({"text": text}))


def _refuse_json(path: Path, head: bytes) -> None:
    """Look at the beginning of a file, whose last line may be cut, before its lines are taken for texts.

    Raises:
        DataError: All lines there are JSON objects, or a JSON list or object begins there.
    """
    lines = [line.strip() for line in head.split(b"\n")[:NUM_SNIFFED_LINES]]
    lines = [line for line in lines[:-1] or lines if line]
    if lines and all(_is_object(line) for line in lines):
        raise _is_json(path, "its lines are JSON objects", ".jsonl")
    two = b"".join(lines[:2])
    if two.startswith(b"[{") or (lines[:1] == [b"{"] and two.startswith(b'{"')):
        raise _is_json(path, "it holds one JSON value", ".json")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_json(path: Path, what: str, kind: str) -> DataError:
    return DataError(
        f"{path}:1: {what}, and a .txt file is read as plain text, a line a row. Name the file {kind}; where the JSON "
        "itself is to be learnt, write it as texts into a column `text`."
    )
