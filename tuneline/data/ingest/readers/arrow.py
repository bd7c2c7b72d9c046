"""Reader of Parquet and Arrow (files and streams, as `datasets` writes them). Values are converted to JSON.

Dates and times become ISO 8601 texts, decimals become texts, and `Json` columns of `datasets` become their values.
Values that JSON does not support are refused: bytes (images, audio), NaN and infinities. `line` is the number of the
row.
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
    """Read a Parquet file with one thread and a small buffer; otherwise a large row group is loaded as a whole."""
    with _check_complete(path), parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        metadata = file.metadata
        num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        check_decompressed_size(path, num_bytes)
        yield from _chunks(str(path), file.schema_arrow, file.iter_batches(BATCH_ROWS, use_threads=False))


def read_arrow(path: Path) -> Iterator[Chunk]:
    """Read an Arrow file or stream."""
    with _check_complete(path), pa.OSFile(str(path)) as file:
        if file.read(len(FILE_MAGIC)) == FILE_MAGIC:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield from _chunks(str(path), reader.schema, batches)
            return
        file.seek(file.size() - len(STREAM_END_MARK))
        if (
            file.read() != STREAM_END_MARK
        ):  # a stream that is truncated between two batches can be read without an error
            raise pa.ArrowInvalid("the end-of-stream marker is missing")
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            yield from _chunks(str(path), stream.schema, stream)


@contextmanager
def _check_complete(path: Path) -> Iterator[None]:
    check_first_bytes(path)
    try:
        yield
    except TunelineError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        kind = path.suffix.removeprefix(".").capitalize()
        raise SourceError(
            f"{path}:1: not a complete {kind} file ({str(error).splitlines()[0]}). If its download was interrupted, "
            "download it again."
        ) from None


def _chunks(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[Chunk]:
    check_columns(schema, name)
    start = 1
    for file_batch in batches:
        for offset in range(0, file_batch.num_rows, BATCH_ROWS):
            batch = file_batch.slice(offset, BATCH_ROWS)
            lines = range(start, start + batch.num_rows)
            yield Chunk(lines, partial(_read_rows, name, batch, lines))
            start += batch.num_rows


def _read_rows(name: str, batch: pa.RecordBatch, lines: range, positions: Sequence[int]) -> list[bytes]:
    part = batch if len(positions) == batch.num_rows else batch.take(pa.array(positions, pa.int64()))
    return to_json_rows(part, [f"{name}:{lines[i]}" for i in positions])


def to_json_rows(batch: pa.RecordBatch, places: Sequence[str]) -> list[bytes]:
    """Return the rows of a batch as JSON texts.

    Args:
        batch: Rows whose columns `check_columns` accepted.
        places: Place of each row, for error messages.

    Raises:
        DataError: A value is NaN, infinite, or not UTF-8.
    """
    to_json = _to_strict_json if _has_type(batch.schema, pa.types.is_floating) else _to_json
    decode = _decoder(batch.schema)
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{places[0]} and following rows: a text is not UTF-8 ({error}). Write the file again."
        ) from None
    texts, max_bytes = [], limits.ROW_BYTES.value()
    for place, row in zip(places, rows, strict=True):
        try:
            texts.append(to_json(decode(row)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{place}: a value cannot be written as JSON ({error}). Fix or drop its column.") from None
        if len(texts[-1]) > max_bytes:
            raise row_too_long_error(place)
    return texts


def check_columns(schema: pa.Schema, name: str) -> None:
    """Check that all columns of a table can be read as text.

    Raises:
        DataError: A column holds bytes, or two columns have the same name.
    """
    counts = Counter(schema.names)
    for field in schema:
        if _contains(field.type, _is_bytes):
            raise DataError(
                f"{name}: the column {field.name!r} holds bytes (for example images or audio), but only text is "
                "supported. Drop the column, or store it as a string if it is text."
            )
        if counts[field.name] > 1:
            raise DataError(f"{name}: two columns are named {field.name!r}. Rename one.")


def _has_type(schema: pa.Schema, matches: Callable[[pa.DataType], bool]) -> bool:
    return any(_contains(field.type, matches) for field in schema)


def _contains(kind: pa.DataType, matches: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a type, or a type nested in it, matches."""
    return matches(kind) or any(_contains(inner, matches) for inner in _inner_types(kind))


def _inner_types(kind: pa.DataType) -> list[pa.DataType]:
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
    if _has_type(schema, lambda kind: isinstance(kind, pa.JsonType)):
        return Features.from_arrow_schema(schema).decode_example
    return lambda row: row


def _to_json(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, default=_to_text, option=orjson.OPT_PASSTHROUGH_DATETIME)


def _to_strict_json(row: dict[str, Any]) -> bytes:
    """Write a row that may hold NaN, which `orjson` would silently convert to null."""
    return json.dumps(row, default=_to_text, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _to_text(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60}")
