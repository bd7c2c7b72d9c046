"""Data files that a path selects."""

import pytest

from tuneline.config.datasets import data_files
from tuneline.errors import SourceError


@pytest.fixture
def write_files(tmp_path):
    def write_files(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        return tmp_path

    return write_files


def names(path):
    result = data_files.find(path)
    return [file.relative_to(result.folder).as_posix() for file in result.paths]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "json"),
        ("a.JSONL", "jsonl"),
        ("a.csv.gz", "csv"),
        ("a.b.tsv.zst", "tsv"),
        ("a.txt", "txt"),
        ("a.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("json", None),
        ("a.xlsx", None),
    ],
)
def test_the_kind_follows_from_the_file_name(tmp_path, name, kind):
    assert data_files.file_kind(tmp_path / name) == kind


def test_a_folder_selects_all_data_files_below_it_in_order(write_files):
    folder = write_files(
        "b.jsonl",
        "a/z.jsonl",
        "a.jsonl.gz",
        "README.md",
        "LICENSE",
        ".hidden/x.csv",
        "a/state.json",
        "dataset_info.json",
    )

    assert names(folder) == ["a/z.jsonl", "a.jsonl.gz", "b.jsonl"]


def test_cache_files_next_to_a_saved_dataset_are_ignored(write_files):
    assert names(write_files("data-00000-of-00001.arrow", "cache-8a7f.arrow", "state.json")) == [
        "data-00000-of-00001.arrow"
    ]


@pytest.mark.parametrize(
    ("pattern", "result"),
    [("*.csv", ["a.csv", "b.csv"]), ("**/*.csv", ["a.csv", "b.csv", "deep/er/c.csv"]), ("?.jsonl", ["d.jsonl"])],
)
def test_a_pattern_selects_the_files_that_match(write_files, pattern, result):
    folder = write_files("b.csv", "a.csv", "deep/er/c.csv", "d.jsonl", "e.parquet")

    assert names(folder / pattern) == result


def test_a_pattern_may_contain_folders(write_files):
    assert names(write_files("x1/a.csv", "x2/a.csv", "y/a.csv") / "x*" / "a.csv") == ["x1/a.csv", "x2/a.csv"]


def test_wildcards_in_the_name_of_an_existing_folder_are_literal(write_files):
    folder = write_files("[old] rows/a.csv", "[old] rows/b.csv") / "[old] rows"

    assert names(folder / "*.csv") == ["a.csv", "b.csv"]
    with pytest.raises(SourceError, match=r"file .*c.csv does not exist"):
        data_files.find(folder / "c.csv")


def test_an_existing_file_name_is_not_read_as_a_pattern(write_files):
    assert names(write_files("rows[1].jsonl", "rows1.jsonl") / "rows[1].jsonl") == ["rows[1].jsonl"]


@pytest.mark.parametrize(
    ("laid", "path", "message"),
    [
        (["train.jsonl"], "trian.jsonl", r"file .*trian.jsonl does not exist. Did you mean 'train.jsonl'\?"),
        (
            ["data/train.jsonl"],
            "dta/train.jsonl",
            r"folder .*dta does not exist. Did you mean 'data'\? Correct the path.",
        ),
        (["data/train.jsonl"], "dta/*.jsonl", r"folder .*dta does not exist. Did you mean 'data'\?"),
        (["a.jsonl"], "*.csv", r"no file matches .*\*.csv. Correct the pattern"),
        (["README.md"], ".", r"folder .* contains no data files"),
        (["a.xlsx"], "a.xlsx", r"a.xlsx is of an unsupported kind. Set a file of another kind: .json, "),
        (
            ["a.csv", "b.jsonl", "c.py"],
            ".",
            r"several kinds \(csv: a.csv; jsonl: b.jsonl; not supported: c.py\). Set a pat",
        ),
        (["a.csv", "a.csv.gz"], ".", r"a.csv exists both compressed and uncompressed. Remove one"),
        (
            ["dataset_dict.json", "train/data.arrow", "test/data.arrow"],
            ".",
            r"contains the splits test, train. Set the f",
        ),
    ],
)
def test_an_ambiguous_or_missing_path_is_refused(write_files, laid, path, message):
    with pytest.raises(SourceError, match=message):
        data_files.find(write_files(*laid) / path)


def test_a_dangling_link_is_refused(write_files):
    folder = write_files("a.jsonl")
    (folder / "b.jsonl").symlink_to("gone")

    with pytest.raises(SourceError, match=r"b.jsonl is a link to a missing file"):
        data_files.find(folder)
