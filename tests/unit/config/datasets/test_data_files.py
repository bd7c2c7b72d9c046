"""Which files a path means, by their names."""

import pytest

from tuneline.config.datasets import data_files
from tuneline.errors import SourceError


@pytest.fixture
def lay(tmp_path):
    def lay(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        return tmp_path

    return lay


def names(path):
    found = data_files.find(path)
    return [each.relative_to(found.folder).as_posix() for each in found.paths]


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
def test_a_name_tells_the_kind(tmp_path, name, kind):
    assert data_files.file_kind(tmp_path / name) == kind


def test_a_folder_means_all_data_below_it_in_order(lay):
    folder = lay(
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


def test_caches_beside_a_saved_data_set_are_no_data(lay):
    assert names(lay("data-00000-of-00001.arrow", "cache-8a7f.arrow", "state.json")) == ["data-00000-of-00001.arrow"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*.csv", ["a.csv", "b.csv"]), ("**/*.csv", ["a.csv", "b.csv", "deep/er/c.csv"]), ("?.jsonl", ["d.jsonl"])],
)
def test_a_pattern_means_what_it_matches(lay, pattern, found):
    folder = lay("b.csv", "a.csv", "deep/er/c.csv", "d.jsonl", "e.parquet")

    assert names(folder / pattern) == found


def test_a_pattern_may_name_folders(lay):
    assert names(lay("x1/a.csv", "x2/a.csv", "y/a.csv") / "x*" / "a.csv") == ["x1/a.csv", "x2/a.csv"]


def test_signs_of_a_pattern_in_a_folder_that_is_there_are_its_name(lay):
    folder = lay("[old] rows/a.csv", "[old] rows/b.csv") / "[old] rows"

    assert names(folder / "*.csv") == ["a.csv", "b.csv"]
    with pytest.raises(SourceError, match=r"there is no file .*c.csv"):
        data_files.find(folder / "c.csv")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(lay):
    assert names(lay("rows[1].jsonl", "rows1.jsonl") / "rows[1].jsonl") == ["rows[1].jsonl"]


@pytest.mark.parametrize(
    ("laid", "path", "message"),
    [
        (["train.jsonl"], "trian.jsonl", r"there is no file .*trian.jsonl. Did you mean 'train.jsonl'\?"),
        (["data/train.jsonl"], "dta/train.jsonl", r"there is no folder .*dta. Did you mean 'data'\? Correct the path."),
        (["data/train.jsonl"], "dta/*.jsonl", r"there is no folder .*dta. Did you mean 'data'\?"),
        (["a.jsonl"], "*.csv", r"no file matches .*\*.csv. Correct the pattern"),
        (["README.md"], ".", r"the folder .* holds no data"),
        (["a.xlsx"], "a.xlsx", r"a.xlsx is of a kind that is not read. Give one of these: .json, "),
        (
            ["a.csv", "b.jsonl", "c.py"],
            ".",
            r"several kinds \(csv: a.csv; jsonl: b.jsonl; not read: c.py\). Give a pat",
        ),
        (["a.csv", "a.csv.gz"], ".", r"a.csv is there both packed and unpacked. Keep one"),
        (
            ["dataset_dict.json", "train/data.arrow", "test/data.arrow"],
            ".",
            r"holds the splits test, train. Give the f",
        ),
    ],
)
def test_a_path_that_means_no_one_data_set_is_refused(lay, laid, path, message):
    with pytest.raises(SourceError, match=message):
        data_files.find(lay(*laid) / path)


def test_a_link_to_nowhere_is_refused(lay):
    folder = lay("a.jsonl")
    (folder / "b.jsonl").symlink_to("gone")

    with pytest.raises(SourceError, match=r"b.jsonl is a link to a missing file"):
        data_files.find(folder)
