"""Plain text: each line is a row with one column, `text`."""

from collections.abc import Iterator
from pathlib import Path

import orjson

from tuneline.data.readers.base import Chunk, grouped
from tuneline.data.readers.files import opened


def chunks(path: Path) -> Iterator[Chunk]:
    """Read lines; only a line feed ends one. Those without a visible sign are blank."""
    with opened(path) as file:
        lines = ((number, line.decode().rstrip("\r\n")) for number, line in enumerate(file, start=1))
        rows = ((number, None if not text.strip() else text) for number, text in lines)
        yield from grouped(rows, lambda _, text: orjson.dumps({"text": text}))
