"""Ingestion: locates datasets, identifies them by their content, and reads their rows.

A row is kept as its own JSON text with its file and line. Values are not unified, filled or converted before the format
of the row reads them, and every later error can name the place of the row. Rows stream from the file into an Arrow
file.
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
"""Seed of `sample: random`, so that every run draws the same rows."""

NUM_COMPARED_ROWS = 100
"""First rows of each file whose keys are compared; files that seem to differ are then compared in full."""


def locate_sources(sources: list[SourceConfig]) -> Manifest:
    """Locate the datasets of a recipe and hash their files. Hub datasets are downloaded first.

    Raises:
        SourceError: A file is missing or of an unsupported kind, or a Hub dataset could not be downloaded.
    """
    return Manifest(kind="sources", items=[_locate_source(source) for source in sources])


def _locate_source(source: SourceConfig) -> Located:
    if source.path is None:
        return hub.locate_hub_dataset(source)
    data_files = find_source_files(source.name, source.path)
    files = file_entries(data_files.folder, data_files.paths)
    return Located(name=source.name, location=str(data_files.folder), source=source.path.name, files=files)


def ingest(sources: Manifest, config: IngestConfig) -> Corpus:
    """Read the rows of one dataset.

    Returns:
        Records: `file`, `line` (from 1; the number of the row in Parquet and Arrow), `record` (JSON text). The counts
        hold the rows read, the rows beyond `max_rows`, the blank lines and the files.

    Raises:
        DataError: A file cannot be parsed, files have different columns, or there are no rows.
        SourceError: A file differs from the one that was resolved, or changed while it was read.
    """
    source = sources.item(config.name)
    counts = {"rows": 0, "rows_beyond_max_rows": 0, "blank_lines": 0, "files": len(source.files)}
    with _check_unchanged(source), RowWriter(schema.RECORD) as writer:
        column_check = _ColumnCheck(source)
        for file, chunk, positions in _select_rows(source, config):
            texts = chunk.read(positions)
            column_check.check(file, texts)
            lines = [chunk.lines[i] for i in positions]
            writer.write({"file": [file] * len(texts), "line": lines, "record": pa.array(texts, pa.large_string())})
            counts["rows"] += len(texts)
            counts["rows_beyond_max_rows"] += len(chunk.lines) - len(texts)
            counts["blank_lines"] += chunk.num_blank
    if not counts["rows"]:
        raise no_rows_error(source)
    return Corpus({"records": writer.rows()}, {"source": config.name}, counts)


def read_first_rows(source: Located, num_rows: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Return the first rows of a dataset with file and line, for a check before a run.

    Raises:
        DataError: A row cannot be parsed, or there are no rows.
    """
    rows = list(islice(_records(source), num_rows))
    if not rows:
        raise no_rows_error(source)
    return rows


@contextmanager
def _check_unchanged(source: Located) -> Iterator[None]:
    """Check the files before and after; a changed file explains any other error in between."""
    file_check.check_unchanged(source)
    try:
        yield
    finally:
        file_check.check_unchanged(source)


def no_rows_error(source: Located) -> DataError:
    """Return the error for a dataset without rows."""
    return DataError(f"sources.{source.name}: {source.paths()[0]} holds no rows. Use a file with at least one row.")


def _chunks(source: Located) -> Iterator[tuple[str, readers.Chunk]]:
    for path in source.paths():
        for chunk in readers.read_chunks(path):
            yield path.relative_to(source.location).as_posix(), chunk


def _records(source: Located) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for file, chunk in _chunks(source):
        for position, line in enumerate(chunk.lines):
            yield file, line, orjson.loads(chunk.read([position])[0])


def _select_rows(source: Located, config: IngestConfig) -> Iterator[tuple[str, readers.Chunk, Sequence[int]]]:
    """Yield chunks with the positions of their selected rows."""
    select = _row_selector(source, config)
    start = 0
    for file, chunk in _chunks(source):
        yield file, chunk, select(start, len(chunk.lines))
        start += len(chunk.lines)


def _row_selector(source: Located, config: IngestConfig) -> Callable[[int, int], Sequence[int]]:
    """Return a function of the first row number and the number of rows that returns the selected positions."""
    limit = config.max_rows
    if limit is None:
        return lambda start, num_rows: range(num_rows)
    if config.sample == "first":
        return lambda start, num_rows: range(max(0, min(num_rows, limit - start)))
    total = sum(len(chunk.lines) for _, chunk in _chunks(source))
    sample = np.sort(np.random.default_rng(SAMPLE_SEED).choice(total, size=min(limit, total), replace=False))

    def select(start: int, num_rows: int) -> Sequence[int]:
        begin, end = np.searchsorted(sample, [start, start + num_rows])
        return list((sample[begin:end] - start).tolist())

    return select


class _Keys:
    """Keys of the rows of a file: those in every row, and those in any row. A null value counts as absent."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self.any: set[str] = set()
        self.every: set[str] | None = None
        for text in texts:
            keys = {key for key, value in _parse(text).items() if value is not None}
            if schema.BAD_ROW_KEY not in keys:
                self.any |= keys
                self.every = keys if self.every is None else self.every & keys

    def only(self, other: "_Keys") -> list[str]:
        """Return the keys that every row here has and no row of `other` has."""
        return sorted((self.every or set()) - other.any)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # a lone surrogate
        return json.loads(text)


class _ColumnCheck:
    """Compares the keys of each file's rows with those of the first file.

    A key that some rows lack is optional, and so is a key that only one of two files has: formats check the keys that
    they need, and `align` reports keys that nothing reads. Two files are refused if each always has a column that the
    other never has.
    """

    def __init__(self, source: Located) -> None:
        self.source = source
        self.first: tuple[str, _Keys] | None = None
        self.last_file = ""

    def check(self, file: str, texts: list[bytes]) -> None:
        """Check the first rows of a file; later rows of the same file are skipped."""
        keys = _Keys(texts[:NUM_COMPARED_ROWS] if file != self.last_file else [])
        if not keys.any:
            return
        self.last_file = file
        first, first_keys = self.first = self.first or (file, keys)
        if not (keys.only(first_keys) and first_keys.only(keys)):
            return
        first_keys, keys = self._all_keys(first), self._all_keys(file)
        if keys.only(first_keys) and first_keys.only(keys):
            raise DataError(
                f"sources.{self.source.name}: its files have different columns: only {first} has "
                f"{first_keys.only(keys)}, only {file} has {keys.only(first_keys)}. Make them separate datasets, or "
                "rename the columns."
            )

    def _all_keys(self, file: str) -> _Keys:
        return _Keys(text for name, chunk in _chunks(self.source) if name == file for text in _texts(chunk))


def _texts(chunk: readers.Chunk) -> Iterator[bytes]:
    yield from chunk.read(range(len(chunk.lines)))
