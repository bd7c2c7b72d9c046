"""Registry of readers by kind of file."""

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
    """Read the rows of a file in chunks.

    Raises:
        DataError: The file cannot be parsed.
        SourceError: The file is truncated, or is not data.
    """
    return READERS[str(file_kind(path))](path)
