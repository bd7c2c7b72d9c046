"""Rows as every reader returns them, and text files that hold them."""

import csv
import io
import json

import pyarrow as pa

from tuneline.data import schema
from tuneline.data.ingest import readers

ROWS = [
    {"q": "one\u2028line\u2029here", "a": 'a "quote", a comma\nand a line'},
    {"q": "二", "a": ""},
    {"q": "x", "a": "\\"},
]


def read_rows(path):
    """Return the line and the value of each row."""
    result = []
    for chunk in readers.read_chunks(path):
        texts = chunk.read(range(len(chunk.lines)))
        result += zip(chunk.lines, map(json.loads, texts), strict=True)
    return result


def row_values(path):
    """Return the value of each row."""
    return [row for _, row in read_rows(path)]


def count_blank(path):
    """Return the number of blank lines."""
    return sum(chunk.num_blank for chunk in readers.read_chunks(path))


def bad_rows(path):
    """Return the line and the error of each malformed row."""
    return [(line, row[schema.BAD_ROW_KEY]) for line, row in read_rows(path) if schema.BAD_ROW_KEY in row]


def as_csv(rows, delimiter=","):
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def compress_zstd(data):
    """Compress bytes with zstd."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


TEXTS = {
    "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "csv": as_csv(ROWS),
    "tsv": as_csv(ROWS, "\t"),
}
