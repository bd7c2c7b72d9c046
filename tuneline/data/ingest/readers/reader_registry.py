"""Which reader reads which kind of file."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tuneline.config.datasets.data_files import file_kind
from tuneline.data.ingest.readers import arrow, delimited, json_array, jsonl, text
from tuneline.data.ingest.readers.base import Chunk

READERS: dict[str, Callable[[Path], Iterator[Chunk]]] = {
    "jsonl": jsonl.read_jsonl,
    "json": json_array.read_json_array,
    "csv": partial(delimited.read_delimited, delimiter=","),
    "tsv": partial(delimited.read_delimited, delimiter="\t"),
    "txt": text.read_text,
    "parquet": arrow.read_parquet,
    "arrow": arrow.read_arrow,
}


def read_chunks(path: Path) -> Iterator[Chunk]:
    """Find the rows of a file, a chunk at a time.

    Raises:
        DataError: The file does not parse.
        SourceError: It was cut, or something else lies in its place.
    """
    return READERS[str(file_kind(path))](path)
