"""Which reader reads which kind of file."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tuneline.config.datasets.data_files import kind
from tuneline.data.ingest.readers import arrow, delimited, json_array, jsonl, text
from tuneline.data.ingest.readers.base import Chunk

READERS: dict[str, Callable[[Path], Iterator[Chunk]]] = {
    "jsonl": jsonl.chunks,
    "json": json_array.chunks,
    "csv": partial(delimited.chunks, delimiter=","),
    "tsv": partial(delimited.chunks, delimiter="\t"),
    "txt": text.chunks,
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
