"""A corpus: rows in named splits, what they are, and what happened to them on the way.

Rows are written and read in batches of an Arrow file and never held as a whole: `Writer` takes them as they come,
`batches` hands them on, and both need the memory of one batch, however many rows there are.

`identity` is part of the content hash, as the rows are: a tokenizer's hash, a mask policy. `counts` is not: how many
rows were refused or dropped, shares, coverage. So a run whose rows came out equal is cached, and each run still has
its counts.
"""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features

from tuneline import filesystem, owner
from tuneline.identity import canonical_json

METADATA_FILE = "corpus.json"
BATCH_ROWS = 1024
"""Rows that are in memory at once."""

FILE_BATCH_ROWS, FILE_BATCH_BYTES = 8192, 4 << 20
"""Rows, or bytes if they are reached first, of a batch in a file: each costs some kilobytes wherever it is mapped."""


@dataclass(frozen=True)
class Corpus:
    """Rows by split, with identity and counts (both JSON-able)."""

    splits: dict[str, Dataset]
    identity: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    preview: list[dict[str, Any]] = field(default_factory=list)
    """Some token sequences to show on a page, JSON-able (`html_preview.preview`); not part of the content hash."""

    folder: Path | None = field(default=None, compare=False)
    """The stored artifact that the rows were read from."""

    def only(self) -> Dataset:
        """Return the rows of a corpus with one split."""
        (rows,) = self.splits.values()
        return rows

    def content_hash(self) -> str:
        """Hash the values of all rows and the identity."""
        parts = {name: hash_rows(rows) for name, rows in self.splits.items()}
        return hashlib.sha256(canonical_json([parts, self.identity]).encode()).hexdigest()

    def num_rows(self) -> dict[str, int]:
        """Count the rows of each split."""
        return {name: rows.num_rows for name, rows in self.splits.items()}

    def save(self, folder: Path) -> None:
        """Keep one Arrow file a split, and what the corpus says of itself."""
        for name, rows in self.splits.items():
            _keep(rows, folder / f"{name}.arrow")
        about = {"splits": list(self.splits), "identity": self.identity, "counts": self.counts, "preview": self.preview}
        (folder / METADATA_FILE).write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Open what `save` kept; rows are memory-mapped where they lie."""
        about = json.loads((folder / METADATA_FILE).read_text())
        splits = {name: Dataset.from_file(str(folder / f"{name}.arrow")) for name in about["splits"]}
        return cls(splits, about["identity"], about["counts"], about.get("preview", []))


class RowWriter:
    """Write rows batch by batch into a scratch file; a context manager.

    >>> with Writer(RECORD) as writer:
    ...     writer.write({"file": ["a.jsonl"], "line": [1], "record": ["{}"]})
    >>> rows = writer.rows()
    """

    def __init__(self, features: Features, path: Path | None = None) -> None:
        self.path = path or create_scratch_file()
        self.features = features
        self._schema = features.arrow_schema
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self.num_rows = 0

    def __enter__(self) -> "Writer":
        self._stream = pa.ipc.new_stream(str(self.path), self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._stream.close()

    def write(self, columns: dict[str, Any]) -> None:
        """Add rows, given as lists or Arrow arrays by column."""
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, field.type)
            for field in self._schema
            for values in (columns[field.name],)
        ]
        self.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        self.num_rows += batch.num_rows
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self._waiting_bytes += batch.nbytes
        if self._waiting_rows >= FILE_BATCH_ROWS or self._waiting_bytes >= FILE_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, schema=self._schema).combine_chunks()
            self._stream.write_table(table, max_chunksize=FILE_BATCH_ROWS)
            self._waiting = []
            self._waiting_rows = self._waiting_bytes = 0

    def rows(self) -> Dataset:
        """Return what was written, memory-mapped."""
        return Dataset.from_file(str(self.path))


def iter_batches(rows: Dataset, num_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield rows in batches of `num_rows` (the last may be shorter); reads the file, so no page stays mapped."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in _written(rows):
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, num_rows - count)
            start, count = start + part.num_rows, count + part.num_rows
            waiting.append(part)
            if count == num_rows:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _written(rows: Dataset) -> Iterator[pa.RecordBatch]:
    """Yield batches as they lie: from the rows' own file where it holds exactly them, else out of memory."""
    path = _own_file(rows)
    if path is None:
        for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from table.combine_chunks().to_batches()
        return
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one batch whose values start at 0, whatever slices they came from, so that equal rows are equal bytes."""
    table = pa.Table.from_batches(parts).replace_schema_metadata(None).combine_chunks()
    plain = table.take(pa.array(range(len(table)))).combine_chunks()
    return plain.to_batches()[0]


def hash_rows(rows: Dataset) -> str:
    """Hash values; how rows are cut into batches on disk makes no difference."""
    digest = hashlib.sha256(str(rows.features).encode())
    for batch in iter_batches(rows, 4096):
        digest.update(batch.serialize())
    return digest.hexdigest()


def _own_file(rows: Dataset) -> Path | None:
    """Return the Arrow file that holds these rows and nothing else, if there is one."""
    files = rows.cache_files
    if rows._indices is not None or len(files) != 1 or rows.num_rows != _rows_in(files[0]["filename"]):
        return None
    return Path(files[0]["filename"])


def _rows_in(path: str) -> int:
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as reader:
        return sum(batch.num_rows for batch in reader)


def _keep(rows: Dataset, target: Path) -> None:
    """Put rows into a file: by a link to their own where that can be made, else by writing them."""
    path = _own_file(rows)
    if path is not None:
        filesystem.link_or_copy(path, target)
        return
    with RowWriter(rows.features, target) as writer:
        for batch in iter_batches(rows):
            writer.write_batch(batch.cast(rows.features.arrow_schema))


def create_scratch_file() -> Path:
    """Return a path for a file that is gone when the process ends, unless it was linked elsewhere."""
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=_scratch_folder(owner.scratch_folder()))
    os.close(handle)
    return Path(path)


@cache
def _scratch_folder(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rows-", dir=base))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
