"""Which reader reads which kind of file."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tuneline.config.files import kind
from tuneline.data.readers import arrow, csv_rows, json_list, json_rows, text_rows
from tuneline.data.readers.base import Chunk

READERS: dict[str, Callable[[Path], Iterator[Chunk]]] = {
    "jsonl": json_rows.chunks,
    "json": json_list.chunks,
    "csv": partial(csv_rows.chunks, delimiter=","),
    "tsv": partial(csv_rows.chunks, delimiter="\t"),
    "txt": text_rows.chunks,
    "parquet": arrow.parquet_chunks,
    "arrow": arrow.arrow_chunks,
}


def chunks(path: Path) -> Iterator[Chunk]:
    """Find the rows of a file, a chunk at a time.

    Raises:
        DataError: The file does not parse.
        SourceError: It was cut, or something else lies in its place.
    """
    return READERS[str(kind(path))](path)
