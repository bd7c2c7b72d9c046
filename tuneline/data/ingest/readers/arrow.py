"""Parquet and Arrow (files and streams, as `datasets` writes them): batch by batch, each value as JSON has it.

Dates and times become ISO 8601 and decimals texts; `Json` columns of `datasets` what they hold. What JSON has no word
for is refused: bytes (images, sounds; rows are text), NaN and infinities. `line` is the number of the row.
"""

import datetime
import decimal
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from datasets import Features
from pyarrow import parquet

from tuneline import limits
from tuneline.data.ingest.readers.base import Chunk
from tuneline.data.ingest.readers.compression import check_decompressed_size
from tuneline.data.ingest.readers.text_stream import check_first_bytes, row_too_long_error
from tuneline.errors import DataError, SourceError, TunelineError

BATCH_ROWS = 1024
FILE_MAGIC = b"ARROW1"
STREAM_END_MARK = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(path: Path) -> Iterator[Chunk]:
    """Read a Parquet file; in one thread and through a small buffer, or a large row group comes into memory whole."""
    with _whole(path), parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        about = file.metadata
        check_decompressed_size(path, sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)))
        yield from _chunks(str(path), file.schema_arrow, file.iter_batches(BATCH_ROWS, use_threads=False))


def read_arrow(path: Path) -> Iterator[Chunk]:
    """Read an Arrow file or stream."""
    with _whole(path), pa.OSFile(str(path)) as file:
        if file.read(len(FILE_MAGIC)) == FILE_MAGIC:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield from _chunks(str(path), reader.schema, batches)
            return
        file.seek(file.size() - len(STREAM_END_MARK))
        if file.read() != STREAM_END_MARK:  # a stream that is cut between two batches reads like one that ends there
            raise pa.ArrowInvalid("the end mark is missing")
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            yield from _chunks(str(path), stream.schema, stream)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    check_first_bytes(path)
    try:
        yield
    except TunelineError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        kind = path.suffix.removeprefix(".").capitalize()
        raise SourceError(
            f"{path}:1: this is no whole {kind} file ({str(error).splitlines()[0]}). If its download was interrupted, "
            "download it again."
        ) from None


def _chunks(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[Chunk]:
    check_columns(schema, name)
    start = 1
    for whole in batches:
        for offset in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(offset, BATCH_ROWS)
            lines = range(start, start + batch.num_rows)
            yield Chunk(lines, partial(_read, name, batch, lines))
            start += batch.num_rows


def _read(name: str, batch: pa.RecordBatch, lines: range, positions: Sequence[int]) -> list[bytes]:
    part = batch if len(positions) == batch.num_rows else batch.take(pa.array(positions, pa.int64()))
    return to_json_rows(part, [f"{name}:{lines[i]}" for i in positions])


def to_json_rows(batch: pa.RecordBatch, places: Sequence[str]) -> list[bytes]:
    """Return the rows of a batch as JSON texts.

    Args:
        batch: Rows whose columns `check_columns` accepted.
        places: Where each row is from, for a message.

    Raises:
        DataError: A value is NaN, infinite, or no UTF-8.
    """
    to_json = _careful if _holds(batch.schema, pa.types.is_floating) else _fast
    decode = _decoder(batch.schema)
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{places[0]} and following: a text is not UTF-8 ({error}). Write the file anew.") from None
    found, longest = [], limits.ROW_BYTES.value()
    for place, row in zip(places, rows, strict=True):
        try:
            found.append(to_json(decode(row)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{place}: a value cannot be written as JSON ({error}). Mend or drop its column.") from None
        if len(found[-1]) > longest:
            raise row_too_long_error(place)
    return found


def check_columns(schema: pa.Schema, name: str) -> None:
    """Check that all columns of a table can be read as text.

    Raises:
        DataError: One holds bytes, or two have the same name.
    """
    counts = Counter(schema.names)
    for field in schema:
        if _within(field.type, _is_bytes):
            raise DataError(
                f"{name}: the column {field.name!r} holds bytes (images, sounds or the like), and rows are text "
                "only. Drop the column, or write it as a string where it is one."
            )
        if counts[field.name] > 1:
            raise DataError(f"{name}: two columns are called {field.name!r}. Give each a name of its own.")


def _holds(schema: pa.Schema, is_it: Callable[[pa.DataType], bool]) -> bool:
    return any(_within(field.type, is_it) for field in schema)


def _within(kind: pa.DataType, is_it: Callable[[pa.DataType], bool]) -> bool:
    return is_it(kind) or any(_within(inner, is_it) for inner in _parts(kind))


def _parts(kind: pa.DataType) -> list[pa.DataType]:
    if isinstance(kind, pa.BaseExtensionType):
        return [kind.storage_type]
    if pa.types.is_dictionary(kind):
        return [kind.value_type]
    return [kind.field(i).type for i in range(kind.num_fields)]


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _decoder(schema: pa.Schema) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if _holds(schema, lambda kind: isinstance(kind, pa.JsonType)):
        return Features.from_arrow_schema(schema).decode_example
    return lambda row: row


def _fast(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)


def _careful(row: dict[str, Any]) -> bytes:
    """Write a row that may hold NaN, which `orjson` would turn into null unseen."""
    return json.dumps(row, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60}")
