"""Arguments of the input: paths, entries of a dataset registry, columns."""

import pytest

from tests import tiny
from tuneline.config.sections.sources import AlignConfig
from tuneline.errors import NotFoundError, RecipeError
from tuneline.serve.predict import rows


@pytest.fixture
def registry(tmp_path):
    tiny.write_jsonl(tmp_path / "qa.jsonl", [{"q": "Q?", "a": "A."}, {"q": "R?", "a": "B."}])
    path = tmp_path / "datasets.yaml"
    path.write_text("qa: {path: qa.jsonl, format: alpaca, columns: {instruction: q, output: a}}\n")
    return path


def test_an_entry_of_a_registry_is_read_with_its_columns(registry, tmp_path, home):
    source = rows.find_source("dataset:qa", registry, {"max_rows": 1})
    found = rows.read_rows(source, AlignConfig(), tmp_path / "out.jsonl")

    (row,) = found.rows
    assert (row.messages[0]["content"], row.reference) == ("Q?", "A.")
    assert found.counts["rows"] == 1


def test_the_registry_in_the_working_directory_is_the_default(registry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    assert rows.find_source("dataset:qa", None, {}).format == "alpaca"
    with pytest.raises(NotFoundError, match="Unknown dataset of datasets.yaml 'qb'. Known: qa"):
        rows.find_source("dataset:qb", None, {})
    registry.unlink()
    with pytest.raises(RecipeError, match="dataset:qa needs a dataset registry"):
        rows.find_source("dataset:qa", None, {})


def test_columns_are_parsed():
    assert rows.parse_columns(["instruction=question,output= answer", "system=s"]) == {
        "instruction": "question",
        "output": "answer",
        "system": "s",
    }
    assert rows.parse_columns([]) == {}
    with pytest.raises(RecipeError, match="expected NAME=COLUMN"):
        rows.parse_columns(["instruction"])
    with pytest.raises(NotFoundError, match="Unknown column of a format 'instructoin'. Did you mean 'instruction'"):
        rows.parse_columns(["instructoin=q"])


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="format: unknown format 'alpacca'. Did you mean 'alpaca'"):
        rows.find_source(str(tmp_path / "x.jsonl"), None, {"format": "alpacca"})


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_every_kind_of_file_is_read(tmp_path, home, suffix):
    import gzip
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    records = tiny.alpaca_rows(3)
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        tiny.write_jsonl(path, records)
    elif suffix == "json":
        path.write_text(json.dumps(records))
    elif suffix == "csv":
        path.write_text("instruction,output\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in records))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))

    found = rows.read_rows(rows.find_source(str(path), None, {}), AlignConfig(), tmp_path / "out.jsonl")

    assert [row.reference for row in found.rows] == [record["output"] for record in records]
