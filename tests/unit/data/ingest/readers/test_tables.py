"""Parquet and Arrow files: the same rows as text files, with values converted to JSON."""

import datetime
import decimal

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, Json, List, Value
from pyarrow import parquet

from tests.reader_rows import ROWS, read_rows, row_values
from tuneline.errors import DataError, SourceError


def test_tables_have_the_same_rows_as_text_files(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)

    for path in (tmp_path / "a.parquet", tmp_path / "saved" / "data-00000-of-00001.arrow", tmp_path / "file.arrow"):
        assert read_rows(path) == list(enumerate(ROWS, start=1))


def test_a_stream_truncated_between_batches_is_reported(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[:-8])

    with pytest.raises(SourceError, match=r"not a complete Arrow file \(the end-of-stream marker is missing\)"):
        read_rows(tmp_path / "a.arrow")


def test_values_of_tables_are_converted_to_json_types(tmp_path):
    row = {
        "day": datetime.date(2024, 2, 29),
        "at": datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "price": decimal.Decimal("1.10"),
        "turns": [{"role": "user", "n": 2**60}],
        "none": None,
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")

    assert row_values(tmp_path / "a.parquet") == [
        {
            "day": "2024-02-29",
            "at": "2024-01-02T03:04:05+00:00",
            "price": "1.10",
            "turns": [{"role": "user", "n": 2**60}],
            "none": None,
        }
    ]


def test_json_columns_are_parsed(tmp_path):
    features = Features({"calls": List(Json()), "score": Value("float64")})
    Dataset.from_dict({"calls": [[{"b": 0}, {"c": "x"}]], "score": [0.5]}, features=features).save_to_disk(
        tmp_path / "a"
    )

    assert row_values(tmp_path / "a" / "data-00000-of-00001.arrow") == [{"calls": [{"b": 0}, {"c": "x"}], "score": 0.5}]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"t": ["x"], "picture": [{"bytes": b"1", "path": "p"}]}), "the column 'picture' holds bytes"),
        (pa.table({"deep": [[[b"1"]]]}), "the column 'deep' holds bytes"),
        (pa.table([["x"], ["y"]], names=["t", "t"]), "two columns are named 't'"),
        (pa.table({"t": [1.0, float("nan")]}), r"a.arrow:2: a value cannot be written as JSON \(Out of range float"),
    ],
)
def test_invalid_text_in_a_table_is_refused(tmp_path, table, message):
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "a.arrow")


def test_a_column_of_images_is_refused(tmp_path):
    features = Features({"text": Value("string"), "image": Image()})
    data = Dataset.from_dict({"text": ["x"], "image": [{"path": "p.png", "bytes": b"1"}]}, features=features)
    data.with_format("arrow").to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"the column 'image' holds bytes \(for example images or audio\)"):
        read_rows(tmp_path / "a.parquet")
