"""Ingestion of datasets: exact bytes, exact locations, counts of unused rows."""

import gzip
import json
import re

import pytest

from tests import tiny
from tuneline.config.sections.exams import ExamConfig
from tuneline.config.sections.sources import IngestConfig, SourceConfig
from tuneline.data.benchmarks import exam_files, multiple_choice
from tuneline.data.ingest import ingest as ingest_module
from tuneline.data.ingest import readers
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")


def source(path, **more):
    return SourceConfig(name="rows", path=path, **more)


def ingest(path, **more):
    return ingest_module.ingest(ingest_module.locate_sources([source(path)]), IngestConfig(name="rows", **more))


def locations(corpus):
    return [(row["file"], row["line"]) for row in corpus.only()]


def test_rows_keep_their_text_and_line_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"b": 1, "a": null}\n\n{"a": "x\u2029y"}\n')

    rows = ingest(path).only()

    assert [(row["line"], json.loads(row["record"])) for row in rows] == [
        (1, {"b": 1, "a": None}),
        (3, {"a": "x\u2029y"}),
    ]


def test_files_of_a_folder_are_read_in_order_of_their_names(tmp_path):
    tiny.write_jsonl(tmp_path / "b.jsonl", tiny.alpaca_rows(1))
    tiny.write_jsonl(tmp_path / "a" / "rows.jsonl", tiny.alpaca_rows(2))

    corpus = ingest(tmp_path)

    assert locations(corpus) == [("a/rows.jsonl", 1), ("a/rows.jsonl", 2), ("b.jsonl", 1)]
    assert corpus.counts["files"] == 2


def test_unused_rows_are_counted(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(5))
    path.write_text("\n" + path.read_text() + "\n \n")

    assert ingest(path, max_rows=2).counts == {"rows": 2, "rows_beyond_max_rows": 3, "blank_lines": 3, "files": 1}


def test_a_random_sample_is_ordered_and_reproducible(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(1000))

    first, second = (locations(ingest(path, max_rows=300, sample="random")) for _ in range(2))

    assert first == second == sorted(first, key=lambda location: location[1])
    assert len(set(first)) == 300
    assert 400 < sum(line for _, line in first) / 300 < 600, "drawn from all of the file"


def test_a_sample_larger_than_the_dataset_has_all_rows(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(3))

    assert ingest(path, max_rows=9, sample="random").counts["rows"] == 3


def test_rows_beyond_the_limit_are_not_parsed(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(1))
    path.write_text(path.read_text() + "broken\n")

    assert ingest(path, max_rows=1).counts["rows_beyond_max_rows"] == 1


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("q,a\n1,2\n")
    (tmp_path / "b.csv").write_text("q,answer\n1,2\n")

    with pytest.raises(DataError, match=r"only a.csv has \['a'\], only b.csv has \['answer'\]. Make them"):
        ingest(tmp_path)


def test_files_whose_rows_lack_a_key_are_accepted(tmp_path):
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"q": 1}, {"q": 2, "system": "s"}])
    tiny.write_jsonl(tmp_path / "b.jsonl", [{"q": 1, "system": "s"}, {"q": 2}])

    assert ingest(tmp_path).counts["rows"] == 4


def test_an_optional_key_may_first_appear_in_any_row(tmp_path):
    rows = tiny.alpaca_rows(150)
    plain, systems = [rows, [{**row, "system": "s"} for row in rows]]
    notes = [{**row, "note": "n"} for row in rows]
    tiny.write_jsonl(tmp_path / "a.jsonl", [*notes, *systems[-2:], *plain[-2:]])
    tiny.write_jsonl(tmp_path / "b.jsonl", systems)
    tiny.write_jsonl(tmp_path / "c.jsonl", [{**row, "note": None, "system": None} for row in rows])
    tiny.write_jsonl(tmp_path / "d.jsonl", plain)

    assert ingest(tmp_path).counts["rows"] == 604


def test_files_with_other_column_names_are_refused_even_if_detected_late(tmp_path):
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"q": "a", "a": "b"}] * 150)
    tiny.write_jsonl(tmp_path / "b.jsonl", [{"q": "a", "answer": "b"}] * 150)

    with pytest.raises(DataError, match=r"only a.jsonl has \['a'\], only b.jsonl has \['answer'\]. Make them"):
        ingest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', r"rows.jsonl:2: not valid JSON: Expecting value"),
        ("\n\n", r"holds no rows. Use a file with at least one row."),
    ],
)
def test_a_bad_file_is_reported_with_its_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)

    with pytest.raises(DataError, match=message):
        ingest(path)
    with pytest.raises(DataError, match=message):
        ingest_module.read_first_rows(ingest_module.locate_sources([source(path)]).only(), 10)


def test_reading_the_first_rows_does_not_read_the_rest(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}])
    path.write_text(path.read_text() + "broken\n")

    rows = ingest_module.read_first_rows(ingest_module.locate_sources([source(path)]).only(), 2)

    assert rows == [("rows.jsonl", 1, {"a": 1}), ("rows.jsonl", 2, {"a": 2})]


def test_a_file_that_changed_since_it_was_resolved_is_refused(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(2))
    manifest = ingest_module.locate_sources([source(path)])
    tiny.write_jsonl(path, tiny.alpaca_rows(3))

    with pytest.raises(SourceError, match="rows.jsonl changed during the run"):
        ingest_module.ingest(manifest, IngestConfig(name="rows"))


@pytest.mark.parametrize("added", ['{"a": 1}\n', "broken\n"])
def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch, added):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(600))
    plain = readers.read_chunks

    def growing(path):
        for number, chunk in enumerate(plain(path)):
            if number == 1:
                with path.open("a") as file:
                    file.write(added)
            yield chunk

    monkeypatch.setattr(readers, "read_chunks", growing)

    with pytest.raises(SourceError, match="rows.jsonl changed during the run"):
        ingest(path)


def test_a_deleted_file_is_refused(tmp_path):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(2))
    manifest = ingest_module.locate_sources([source(path)])
    path.unlink()

    with pytest.raises(SourceError, match="rows.jsonl was removed after it had been located"):
        ingest_module.ingest(manifest, IngestConfig(name="rows"))


def test_the_identity_depends_on_bytes_and_not_on_paths(tmp_path):
    first = tiny.write_jsonl(tmp_path / "a" / "rows.jsonl", tiny.alpaca_rows(2))
    copy = tiny.write_jsonl(tmp_path / "b" / "rows.jsonl", tiny.alpaca_rows(2))
    changed = tiny.write_jsonl(tmp_path / "c" / "rows.jsonl", tiny.alpaca_rows(3))

    hashes = [ingest_module.locate_sources([source(path)]).content_hash() for path in (first, copy, changed)]

    assert hashes[0] == hashes[1] != hashes[2]


def test_an_exam_is_read_by_subject(tmp_path):
    exam = multiple_choice.read_exam(
        exam_files.locate_exams([ExamConfig(name="e", path=tiny.write_exam(tmp_path))]).only()
    )

    assert [question.answer for question in exam.test["numbers"]] == ["A", "B", "C", "D"]
    assert len(exam.shots["numbers"]) == 2


@pytest.mark.parametrize(("row", "message"), [("q,1,2,3,A\n", "got 5 columns"), ("q,1,2,3,4,E\n", "got 'E'")])
def test_a_bad_exam_row_is_reported_with_its_line(tmp_path, row, message):
    tiny.write_exam(tmp_path)
    path = tmp_path / "test" / "numbers.csv"
    path.write_text(path.read_text() + row)

    with pytest.raises(DataError, match=f"numbers.csv:5.*{message}"):
        multiple_choice.read_exam(exam_files.locate_exams([ExamConfig(name="e", path=tmp_path)]).only())


def test_every_public_file_has_the_documented_number_of_rows(test_data):
    table = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \|", (test_data / "MANIFEST.md").read_text(), flags=re.MULTILINE)
    others = ("exams/", "malformed/", "llamafactory/dataset_info", "pubmed/ori_pqal")
    expected = {
        name: int(rows.replace(",", ""))
        for name, rows in table
        if not name.startswith(others) and not name.endswith(".rouge")
    }

    actual = {name: ingest(test_data / name).counts["rows"] for name in expected}

    assert len(actual) > 20
    assert actual == expected


def test_raw_paragraph_separators_do_not_split_rows(test_data):
    path = test_data / "pubmed" / "pubmed_abstracts.jsonl.gz"
    raw = gzip.decompress(path.read_bytes())

    texts = ingest(path).only()["record"]

    assert "\u2029" in "".join(texts)
    assert [text.encode() for text in texts] == raw.rstrip(b"\n").split(b"\n")
