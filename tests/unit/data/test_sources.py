"""Reading data sets: exact bytes, exact places."""

import gzip
import json

import pytest

from tests import tiny
from tuneline.config.data import ExamConfig, IngestConfig, SourceConfig
from tuneline.data import benchmarks, sources
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")


def source(path, **more):
    return SourceConfig(name="rows", path=path, format="alpaca", **more)


def ingest(path, max_rows=None):
    return sources.ingest(sources.locate([source(path)]), IngestConfig(name="rows", max_rows=max_rows))


def test_rows_keep_their_text_and_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"b": 1, "a": null}\n\n{"a": "x\u2029y"}\n')

    rows = ingest(path).only()

    assert [(row["line"], json.loads(row["record"])) for row in rows] == [
        (1, {"b": 1, "a": None}),
        (3, {"a": "x\u2029y"}),
    ]


def test_a_packed_list_is_read(tmp_path):
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(json.dumps(tiny.alpaca_rows(3)).encode()))

    assert ingest(path).num_rows() == {"records": 3}


def test_rows_beyond_the_limit_are_counted(tmp_path):
    corpus = ingest(tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(5)), max_rows=2)

    assert corpus.counts == {"rows": 2, "rows_beyond_max_rows": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', r"rows.jsonl:2: not valid JSON: Expecting value"),
        ("[1]\n", r"rows.jsonl:1: a row must be a JSON object, got list"),
        ("\n\n", r"holds no rows. Give a file with at least one."),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)

    with pytest.raises(DataError, match=message):
        ingest(path)


def test_a_file_that_changed_since_it_was_resolved_is_refused(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(2))
    manifest = sources.locate([source(path)])
    tiny.write_jsonl(path, tiny.alpaca_rows(3))

    with pytest.raises(SourceError, match="rows.jsonl changed while the run was going on"):
        sources.ingest(manifest, IngestConfig(name="rows"))


def test_identity_follows_bytes_not_places(tmp_path):
    here = tiny.write_jsonl(tmp_path / "a" / "rows.jsonl", tiny.alpaca_rows(2))
    there = tiny.write_jsonl(tmp_path / "b" / "rows.jsonl", tiny.alpaca_rows(2))
    other = tiny.write_jsonl(tmp_path / "c" / "rows.jsonl", tiny.alpaca_rows(3))

    hashes = [sources.locate([source(path)]).content_hash() for path in (here, there, other)]

    assert hashes[0] == hashes[1] != hashes[2]


def test_an_exam_is_read_by_subject(tmp_path):
    exam = benchmarks.read_exam(sources.locate_exams([ExamConfig(name="e", path=tiny.write_exam(tmp_path))]).only())

    assert [question.answer for question in exam.test["numbers"]] == ["A", "B", "C", "D"]
    assert len(exam.shots["numbers"]) == 2


@pytest.mark.parametrize(("row", "message"), [("q,1,2,3,A\n", "got 5 columns"), ("q,1,2,3,4,E\n", "got 'E'")])
def test_a_bad_exam_row_is_told_with_its_line(tmp_path, row, message):
    tiny.write_exam(tmp_path)
    path = tmp_path / "test" / "numbers.csv"
    path.write_text(path.read_text() + row)

    with pytest.raises(DataError, match=f"numbers.csv:5.*{message}"):
        benchmarks.read_exam(sources.locate_exams([ExamConfig(name="e", path=tmp_path)]).only())


def test_the_public_malformed_files_are_refused_with_their_line(test_data):
    with pytest.raises(DataError, match=r"garbage_prefix.jsonl:1: not valid JSON"):
        ingest(test_data / "malformed" / "garbage_prefix.jsonl")
    with pytest.raises(DataError, match=r"alpaca_zh_trailing_comma.json.gz:1400[67]: not valid JSON"):
        ingest(test_data / "malformed" / "alpaca_zh_trailing_comma.json.gz")
