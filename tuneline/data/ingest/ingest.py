"""Datasets: find their files, identify them by their bytes, and read their rows.

A row travels as its own JSON text with the file and line it stands in, so nothing is unified, filled or retyped before
its format has read it, and every later complaint can name its place. Rows stream from the file into an Arrow file.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from tuneline.config.existence import find_source_files
from tuneline.config.sections.sources import IngestConfig, SourceConfig
from tuneline.data import file_check, schema
from tuneline.data.corpus import Corpus, RowWriter
from tuneline.data.ingest import hub, readers
from tuneline.errors import DataError
from tuneline.identity import Located, Manifest, file_entries

SAMPLE_SEED = 0
"""Of the draw where `sample` is random; drawn rows are the same in every run."""

NUM_COMPARED_ROWS = 100
"""Rows of each file whose keys are compared first; only files that look different are read as a whole for that."""


def locate_sources(sources: list[SourceConfig]) -> Manifest:
    """Find the data sets of a recipe and hash their bytes; those of the hub are copied first.

    Raises:
        SourceError: A file is missing, or is of a kind that is not read; the hub does not give the rows.
    """
    return Manifest(kind="sources", items=[_locate_source(source) for source in sources])


def _locate_source(source: SourceConfig) -> Located:
    if source.path is None:
        return hub.locate_hub_dataset(source)
    found = find_source_files(source.name, source.path)
    files = file_entries(found.folder, found.paths)
    return Located(name=source.name, location=str(found.folder), source=source.path.name, files=files)


def ingest(sources: Manifest, config: IngestConfig) -> Corpus:
    """Read the rows of one data set.

    Returns:
        Records: `file`, `line` (from 1; the row's number in Parquet and Arrow), `record` (JSON text). Counts hold the
        rows taken, those beyond `max_rows`, blank lines and files.

    Raises:
        DataError: A file does not parse, files have other columns than the first, or there are no rows.
        SourceError: A file is not the one that was resolved, or changed while it was read.
    """
    found = sources.item(config.name)
    counts = {"rows": 0, "rows_beyond_max_rows": 0, "blank_lines": 0, "files": len(found.files)}
    with _unchanged(found), RowWriter(schema.RECORD) as writer:
        same_columns = _SameColumns(found)
        for file, chunk, taken in _taken(found, config):
            texts = chunk.read(taken)
            same_columns.check(file, texts)
            lines = [chunk.lines[i] for i in taken]
            writer.write({"file": [file] * len(texts), "line": lines, "record": pa.array(texts, pa.large_string())})
            counts["rows"] += len(texts)
            counts["rows_beyond_max_rows"] += len(chunk.lines) - len(texts)
            counts["blank_lines"] += chunk.num_blank
    if not counts["rows"]:
        raise no_rows_error(found)
    return Corpus({"records": writer.rows()}, {"source": config.name}, counts)


def read_first_rows(found: Located, num_rows: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Return the first rows of a data set with file and line, to be looked at before a run.

    Raises:
        DataError: One does not parse, or there are none.
    """
    rows = list(islice(_records(found), num_rows))
    if not rows:
        raise no_rows_error(found)
    return rows


@contextmanager
def _unchanged(found: Located) -> Iterator[None]:
    """Check the bytes before and after; a file that changed explains whatever went wrong in between."""
    file_check.check_unchanged(found)
    try:
        yield
    finally:
        file_check.check_unchanged(found)


def no_rows_error(found: Located) -> DataError:
    """Return the error of a data set without rows."""
    return DataError(f"sources.{found.name}: {found.paths()[0]} holds no rows. Give a file with at least one.")


def _chunks(found: Located) -> Iterator[tuple[str, readers.Chunk]]:
    for path in found.paths():
        for chunk in readers.read_chunks(path):
            yield path.relative_to(found.location).as_posix(), chunk


def _records(found: Located) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for file, chunk in _chunks(found):
        for position, line in enumerate(chunk.lines):
            yield file, line, orjson.loads(chunk.read([position])[0])


def _taken(found: Located, config: IngestConfig) -> Iterator[tuple[str, readers.Chunk, Sequence[int]]]:
    """Yield chunks with the positions of the rows that are taken of each."""
    take = _taker(found, config)
    start = 0
    for file, chunk in _chunks(found):
        yield file, chunk, take(start, len(chunk.lines))
        start += len(chunk.lines)


def _taker(found: Located, config: IngestConfig) -> Callable[[int, int], Sequence[int]]:
    """Return what tells which of so many rows from a start on are taken, as positions from that start."""
    limit = config.max_rows
    if limit is None:
        return lambda start, num_rows: range(num_rows)
    if config.sample == "first":
        return lambda start, num_rows: range(max(0, min(num_rows, limit - start)))
    total = sum(len(chunk.lines) for _, chunk in _chunks(found))
    drawn = np.sort(np.random.default_rng(SAMPLE_SEED).choice(total, size=min(limit, total), replace=False))

    def draw(start: int, num_rows: int) -> Sequence[int]:
        begin, end = np.searchsorted(drawn, [start, start + num_rows])
        return list((drawn[begin:end] - start).tolist())

    return draw


class _Keys:
    """Keys of the rows of a file: those that every row has, and those that any has. A null counts as absent."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self.any: set[str] = set()
        self.every: set[str] | None = None
        for text in texts:
            keys = {key for key, value in _parsed(text).items() if value is not None}
            if schema.BAD_ROW_KEY not in keys:
                self.any |= keys
                self.every = keys if self.every is None else self.every & keys

    def only(self, other: "_Keys") -> list[str]:
        """Return the keys that every row has here, and none there."""
        return sorted((self.every or set()) - other.any)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # half a surrogate pair
        return json.loads(text)


class _SameColumns:
    """Compare the keys of each file's rows to those of the first file.

    A key that some rows lack is optional, and so is one that only one of two files has: formats say what they need, and
    `align` tells what nothing reads. Two files that each always have a column which the other lacks are refused.
    """

    def __init__(self, found: Located) -> None:
        self.found = found
        self.first: tuple[str, _Keys] | None = None
        self.seen = ""

    def check(self, file: str, texts: list[bytes]) -> None:
        """Look at the first rows of a file."""
        keys = _Keys(texts[:NUM_COMPARED_ROWS] if file != self.seen else [])
        if not keys.any:
            return
        self.seen = file
        first, known = self.first = self.first or (file, keys)
        if not (keys.only(known) and known.only(keys)):
            return
        known, keys = self._whole(first), self._whole(file)
        if keys.only(known) and known.only(keys):
            raise DataError(
                f"sources.{self.found.name}: its files do not have the same columns: only {first} has "
                f"{known.only(keys)}, only {file} has {keys.only(known)}. Make them data sets of their own, or name "
                "the columns alike."
            )

    def _whole(self, file: str) -> _Keys:
        return _Keys(text for name, chunk in _chunks(self.found) if name == file for text in _texts(chunk))


def _texts(chunk: readers.Chunk) -> Iterator[bytes]:
    yield from chunk.read(range(len(chunk.lines)))
