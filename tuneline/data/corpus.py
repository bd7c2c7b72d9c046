"""Corpus: the rows of a dataset in named splits, with their identity and processing counts.

Rows are written and read in batches of an Arrow file and never loaded entirely: `RowWriter` and `iter_batches` need
the memory of one batch, regardless of the number of rows.

`identity` is part of the content hash, as are the rows; it contains a tokenizer's hash or a mask policy, for example.
`counts` is not part of it: the numbers of refused and dropped rows, shares, coverage. A run with equal rows is
therefore cached, and every run has its own counts.
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
"""Number of rows per batch in memory."""

FILE_BATCH_ROWS, FILE_BATCH_BYTES = 8192, 4 << 20
"""Maximum rows and bytes of a batch in a file; each batch costs some kilobytes in every process that maps the file."""


@dataclass(frozen=True)
class Corpus:
    """Rows by split, with identity and counts (both JSON-serializable)."""

    splits: dict[str, Dataset]
    identity: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    preview: list[dict[str, Any]] = field(default_factory=list)
    """Some token sequences to show on a page, JSON-able (`html_preview.preview`); not part of the content hash."""

    folder: Path | None = field(default=None, compare=False)
    """Folder of the stored artifact from which the rows were loaded."""

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
        """Write one Arrow file per split, and the metadata."""
        for name, rows in self.splits.items():
            _save_rows(rows, folder / f"{name}.arrow")
        metadata = {
            "splits": list(self.splits),
            "identity": self.identity,
            "counts": self.counts,
            "preview": self.preview,
        }
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Open a saved corpus; rows are memory-mapped."""
        metadata = json.loads((folder / METADATA_FILE).read_text())
        splits = {name: Dataset.from_file(str(folder / f"{name}.arrow")) for name in metadata["splits"]}
        return cls(splits, metadata["identity"], metadata["counts"], metadata.get("preview", []))


class RowWriter:
    """Context manager that writes rows to a scratch file, batch by batch.

    >>> with Writer(RECORD) as writer:
    ...     writer.write({"file": ["a.jsonl"], "line": [1], "record": ["{}"]})
    >>> rows = writer.rows()
    """

    def __init__(self, features: Features, path: Path | None = None) -> None:
        self.path = path or create_scratch_file()
        self.features = features
        self._schema = features.arrow_schema
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = 0
        self.num_rows = 0

    def __enter__(self) -> "RowWriter":
        self._stream = pa.ipc.new_stream(str(self.path), self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._stream.close()

    def write(self, columns: dict[str, Any]) -> None:
        """Add rows, as lists or Arrow arrays by column."""
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, field.type)
            for field in self._schema
            for values in (columns[field.name],)
        ]
        self.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        self.num_rows += batch.num_rows
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes
        if self._pending_rows >= FILE_BATCH_ROWS or self._pending_bytes >= FILE_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, schema=self._schema).combine_chunks()
            self._stream.write_table(table, max_chunksize=FILE_BATCH_ROWS)
            self._pending = []
            self._pending_rows = self._pending_bytes = 0

    def rows(self) -> Dataset:
        """Return the written rows, memory-mapped."""
        return Dataset.from_file(str(self.path))


def iter_batches(rows: Dataset, num_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield rows in batches of `num_rows` (the last may be shorter); reads the file instead of mapping it."""
    parts: list[pa.RecordBatch] = []
    count = 0
    for batch in _stored_batches(rows):
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, num_rows - count)
            start, count = start + part.num_rows, count + part.num_rows
            parts.append(part)
            if count == num_rows:
                yield _concatenate(parts)
                parts, count = [], 0
    if parts:
        yield _concatenate(parts)


def _stored_batches(rows: Dataset) -> Iterator[pa.RecordBatch]:
    """Yield batches as they are stored: from the Arrow file if it holds exactly these rows, otherwise from memory."""
    path = _arrow_file(rows)
    if path is None:
        for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from table.combine_chunks().to_batches()
        return
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _concatenate(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenate batches; values are copied to start at offset 0, so that equal rows have equal bytes."""
    table = pa.Table.from_batches(parts).replace_schema_metadata(None).combine_chunks()
    copied = table.take(pa.array(range(len(table)))).combine_chunks()
    return copied.to_batches()[0]


def hash_rows(rows: Dataset) -> str:
    """Hash the values of rows; the hash does not depend on the batches on disk."""
    digest = hashlib.sha256(str(rows.features).encode())
    for batch in iter_batches(rows, 4096):
        digest.update(batch.serialize())
    return digest.hexdigest()


def _arrow_file(rows: Dataset) -> Path | None:
    """Return the Arrow file that holds exactly these rows, if there is one."""
    files = rows.cache_files
    if rows._indices is not None or len(files) != 1 or rows.num_rows != _rows_in(files[0]["filename"]):
        return None
    return Path(files[0]["filename"])


def _rows_in(path: str) -> int:
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as reader:
        return sum(batch.num_rows for batch in reader)


def _save_rows(rows: Dataset, target: Path) -> None:
    """Save rows to a file: by a hard link or a copy of their Arrow file if possible, otherwise by writing them."""
    path = _arrow_file(rows)
    if path is not None:
        filesystem.link_or_copy(path, target)
        return
    with RowWriter(rows.features, target) as writer:
        for batch in iter_batches(rows):
            writer.write_batch(batch.cast(rows.features.arrow_schema))


def create_scratch_file() -> Path:
    """Create a temporary file that is deleted when the process exits; hard links to it remain."""
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=_scratch_folder(owner.scratch_folder()))
    os.close(handle)
    return Path(path)


@cache
def _scratch_folder(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rows-", dir=base))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
