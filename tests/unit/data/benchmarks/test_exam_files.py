"""Exams are located in folders, zip files and Hub datasets, and read by their columns."""

import csv
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tuneline.config.sections import exams as places
from tuneline.config.sections.exams import ExamConfig
from tuneline.data.benchmarks import exam_files, multiple_choice
from tuneline.data.benchmarks.multiple_choice import Question
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")
HEADED = ',Question,A,B,C,D,Answer\n0,"Which, then?",one,two,three,four,B\n'


def read(**config):
    return multiple_choice.read_exam(exam_files.locate_exams([ExamConfig(name="e", **config)]).only())


def sheet(folder, split, text, subject="numbers"):
    path = folder / split / f"{subject}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return folder


def zip_folder(folder, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.csv")):
            file.write(path, f"data/{path.relative_to(folder)}")
    return archive


def error_of(**config):
    with pytest.raises((SourceError, DataError)) as caught:
        read(**config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("benchmark", "count", "shots", "subjects"),
    [("mmlu", 9929, 190, 38), ("cmmlu", 8071, 225, 45), ("ceval", 846, 170, 34)],
)
def test_real_zip_files_are_read_completely(test_data, benchmark, count, shots, subjects):
    exam = read(path=test_data / "exams" / f"{benchmark}.zip", benchmark=benchmark)

    assert sum(map(len, exam.test.values())) == count
    assert sum(map(len, exam.shots.values())) == shots
    assert len(exam.test) == subjects
    assert exam.test.keys() == exam.shots.keys()
    assert all(places.subject_category(benchmark, subject) for subject in exam.test)
    assert Counter(map(type, exam.test)) == {str: subjects}


def test_a_zip_file_and_its_folder_are_the_same_exam(tmp_path):
    folder = tiny.write_exam(tmp_path / "exam")

    assert read(path=zip_folder(folder, tmp_path / "exam.zip")) == read(path=folder)


def test_a_repacked_zip_file_is_the_same_exam(tmp_path):
    folder = tiny.write_exam(tmp_path / "exam")
    first, second = zip_folder(folder, tmp_path / "a.zip"), zip_folder(folder, tmp_path / "b.zip")
    with zipfile.ZipFile(second, "a") as file:
        file.comment = b"packed again"

    hashes = {exam_files.locate_exams([ExamConfig(name="e", path=path)]).content_hash() for path in (first, second)}

    assert len(hashes) == 1


def test_columns_are_identified_by_the_header_if_present(tmp_path):
    exam = read(path=sheet(tmp_path, "test", HEADED), benchmark="cmmlu", num_shots=0)

    assert exam.test == {"numbers": [Question("numbers", "Which, then?", ("one", "two", "three", "four"), "B")]}


def test_the_test_split_can_be_selected(tmp_path):
    tiny.write_exam(tmp_path)
    sheet(tmp_path, "val", '"Of val?",a,b,c,d,D\n')

    assert [question.text for question in read(path=tmp_path, split="val").test["numbers"]] == ["Of val?"]
    assert len(read(path=tmp_path).test["numbers"]) == 4


def test_subjects_can_be_chosen(test_data):
    exam = read(path=test_data / "exams" / "mmlu.zip", subjects=["anatomy", "virology"])

    assert list(exam.test) == ["anatomy", "virology"]
    assert list(exam.shots) == ["anatomy", "virology"]


def hub(monkeypatch, folder):
    monkeypatch.setattr(exam_files, "snapshot_download", lambda *a, **k: str(folder))


def test_parquet_files_of_the_hub_are_read_with_answers_as_numbers(tmp_path, monkeypatch):
    row = {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}
    for part in ("anatomy/test", "anatomy/dev", "all/test"):
        path = tmp_path / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), path)
    hub(monkeypatch, tmp_path)

    exam = read(hub="cais/mmlu")

    assert exam.test == exam.shots == {"anatomy": [Question("anatomy", "Which?", ("a", "b", "c", "d"), "C")]}


def test_a_zip_file_of_the_hub_is_read(tmp_path, monkeypatch):
    folder = tiny.write_exam(tmp_path / "exam")
    (tmp_path / "repository").mkdir()
    zip_folder(folder, tmp_path / "repository" / "cmmlu_v1_0_1.zip")
    hub(monkeypatch, tmp_path / "repository")

    assert read(hub="haonan-li/cmmlu", benchmark="cmmlu") == read(path=folder)


def test_an_unreachable_hub_is_reported(monkeypatch):
    def fail(*a, **k):
        raise OSError("no route to host")

    monkeypatch.setattr(exam_files, "snapshot_download", fail)

    message = error_of(hub="cais/mmlu")

    assert "exams.e.hub: cais/mmlu, revision main, could not be downloaded from the Hub: no route to host." in message


def test_other_columns_of_a_parquet_file_are_reported(tmp_path, monkeypatch):
    path = tmp_path / "anatomy" / "test-0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([{"question": "q", "A": "1", "B": "2", "C": "3", "answer": "A"}]), path)
    hub(monkeypatch, tmp_path)

    assert "D is missing, the file has ['A', 'B', 'C', 'answer', 'question']" in error_of(hub="some/exam")


def test_a_missing_column_is_reported_by_name(tmp_path):
    text = "id,question,A,B,C,answer\n0,Which?,1,2,3,A\n"

    assert "numbers.csv: the column D is missing; its header has ['id'," in error_of(path=sheet(tmp_path, "test", text))


def test_a_test_without_answers_points_to_the_split_that_has_them(test_data):
    message = error_of(path=test_data / "exams" / "ceval.zip", benchmark="ceval", split="test")

    assert "the column answer is missing" in message
    assert "set split: val" in message


@pytest.mark.parametrize("answer", ["E", "b", "", "AB"])
def test_a_wrong_answer_letter_is_reported_with_its_line(tmp_path, answer):
    text = f"{HEADED}1,Why?,1,2,3,4,{answer}\n"

    assert f"numbers.csv:3: the answer must be one of A, B, C, D; got '{answer}'." in error_of(
        path=sheet(tmp_path, "test", text)
    )


def test_a_row_with_too_few_cells_is_reported_with_its_line(tmp_path):
    assert "numbers.csv:3: expected question, A, B, C, D, answer; got 4 columns." in error_of(
        path=sheet(tmp_path, "test", f"{HEADED}1,Why?,1,2\n")
    )


def test_a_file_with_only_a_header_is_reported(tmp_path):
    text = HEADED.splitlines()[0] + "\n"

    assert "numbers.csv holds no questions" in error_of(path=sheet(tmp_path, "test", text))


def test_an_exam_without_data_is_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("readme.txt", "nothing here")
    (tmp_path / "torn.zip").write_bytes(b"PK and no more")

    assert "does not contain test/<subject>.csv" in error_of(path=tmp_path / "empty")
    assert "does not contain test/<subject>.csv" in error_of(path=tmp_path / "empty.zip")
    assert "exams.e.path: file not found: " in error_of(path=tmp_path / "nowhere")
    assert "is not a valid zip file" in error_of(path=tmp_path / "torn.zip")


def test_an_unknown_subject_is_reported_with_the_nearest(test_data):
    message = error_of(path=test_data / "exams" / "mmlu.zip", subjects=["anatomi"])

    assert "has no questions of 'anatomi' in split test. Did you mean 'anatomy'?" in message


@pytest.mark.parametrize("config", [{}, {"path": "a", "hub": "b/c"}], ids=["neither", "both"])
def test_an_exam_has_exactly_one_location(config):
    with pytest.raises(ValueError, match="exams.e: expected exactly one of path"):
        ExamConfig(name="e", **config)


def test_every_subject_has_a_name_and_a_category():
    for benchmark, count in (("mmlu", 57), ("cmmlu", 67), ("ceval", 52)):
        table = places._subjects(benchmark)

        assert len(table) == count
        assert {category for _, category in table.values()} == {"STEM", "Humanities", "Social Sciences", "Other"}


def test_all_rows_and_cells_of_a_real_file_are_read(test_data):
    with zipfile.ZipFile(test_data / "exams" / "cmmlu.zip") as archive:
        text = archive.read("test/agronomy.csv").decode("utf-8-sig")
    rows = list(csv.DictReader(text.splitlines(keepends=True)))

    exam = read(path=test_data / "exams" / "cmmlu.zip", benchmark="cmmlu", subjects=["agronomy"])

    questions = [(q.text, *q.choices, q.answer) for q in exam.test["agronomy"]]
    assert questions == [tuple(row[name] for name in ("Question", "A", "B", "C", "D", "Answer")) for row in rows]


def a_zip(path, members, **how):
    with zipfile.ZipFile(path, "w", **how) as file:
        for name, text in members:
            file.writestr(name, text)
    return path


SOLVED = "q,a,b,c,d,A\n"


def test_a_zip_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    members = [("dev/x.csv", SOLVED), ("test/x.csv", "q" * (80 << 20))]
    archive = a_zip(tmp_path / "e.zip", members, compression=zipfile.ZIP_DEFLATED)

    assert archive.stat().st_size < 1 << 20
    assert "test/x.csv in" in (message := error_of(path=archive))
    assert "has 83,886,080 bytes; the maximum for a question file is 64 MiB" in message


def test_a_zip_file_with_wrong_sizes_is_refused(tmp_path):
    members = [("dev/x.csv", SOLVED), ("test/x.csv", SOLVED * 100_000)]
    archive = a_zip(tmp_path / "e.zip", members, compression=zipfile.ZIP_DEFLATED)
    size = (len(SOLVED) * 100_000).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (100).to_bytes(4, "little")))

    assert "test/x.csv cannot be unpacked" in error_of(path=archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["test/x.csv", "other/test/x.csv", "test/x_test.csv"])
def test_two_files_of_one_subject_are_refused(tmp_path, second):
    archive = a_zip(tmp_path / "e.zip", [("dev/x.csv", SOLVED), ("test/x.csv", SOLVED), (second, "r,a,b,c,d,B\n")])

    assert "two files contain the subject 'x' of split test" in error_of(path=archive)


def test_two_files_of_one_subject_in_a_folder_are_refused(tmp_path):
    for name in ("x", "x_dev"):
        sheet(tmp_path, "dev", SOLVED, name)
    sheet(tmp_path, "test", SOLVED, "x")

    assert "two files contain the subject 'x' of split dev" in error_of(path=tmp_path)


def test_a_zip_file_with_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_EXAM_FILES", "3")
    archive = a_zip(tmp_path / "e.zip", [(f"test/x{i}.csv", SOLVED) for i in range(4)])

    assert "contains 4 files; the maximum for an exam is 3" in error_of(path=archive)


def test_a_locked_zip_file_is_refused(tmp_path):
    archive = a_zip(tmp_path / "e.zip", [("dev/x.csv", SOLVED), ("test/x.csv", SOLVED)])
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for at in [i for i in range(len(content)) if content[i : i + 4] == signature]:
            content[at + offset] |= 1
    archive.write_bytes(content)

    assert "cannot be unpacked" in error_of(path=archive)


@pytest.mark.parametrize("subject", ["s" * 200, "a\nb"], ids=["long", "line feed"])
def test_a_subject_name_is_a_valid_file_name(tmp_path, subject):
    archive = a_zip(tmp_path / "e.zip", [(f"{split}/{subject}.csv", SOLVED) for split in ("dev", "test")])

    assert "is not a valid subject name" in error_of(path=archive)


def test_an_oversized_file_is_refused(tmp_path, monkeypatch):
    sheet(sheet(tmp_path, "dev", SOLVED), "test", SOLVED * 1000)
    monkeypatch.setenv("TUNELINE_MAX_EXAM_BYTES", "5000")

    with pytest.raises(SourceError, match="the maximum for a question file is 5,000 bytes"):
        read(path=tmp_path)


def test_unterminated_cells_and_invalid_bytes_are_reported_with_their_line(tmp_path):
    sheet(sheet(tmp_path, "dev", SOLVED), "test", SOLVED + '"' + "a" * (20 << 20))
    with pytest.raises(DataError, match=r"numbers.csv:\d+: not valid CSV"):
        read(path=tmp_path)

    (tmp_path / "test" / "numbers.csv").write_bytes(SOLVED.encode() + b"caf\xe9,a,b,c,d,A\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read(path=tmp_path)
