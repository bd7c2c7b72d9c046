"""Text files: every kind returns the same rows with their lines."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reader_rows import ROWS, TEXTS, compress_zstd, count_blank, read_rows, row_values
from tuneline.data.ingest import readers
from tuneline.data.ingest.readers import json_array


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", compress_zstd)])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_text_format_has_the_same_rows(write, kind, ending, pack, mark):
    assert row_values(write(f"a.{kind}{ending}", pack(mark + TEXTS[kind].encode()))) == ROWS


def test_lines_of_text_are_rows(write):
    path = write("a.txt", b"  one\xe2\x80\xa8still one \r\n\n \t\n\xe3\x80\x80\ntwo")

    assert read_rows(path) == [(1, {"text": "  one\u2028still one "}), (5, {"text": "two"})]
    assert count_blank(path) == 3


def test_a_row_keeps_its_text(write):
    text = b'{"n": 123456789012345678901234567890, "f": 1.10,  "z": null}'

    (chunk,) = readers.read_chunks(write("a.jsonl", text))

    assert chunk.read([0]) == [text]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", '\n{"a": 1}\r\n\r\n{"a": 2}', [2, 4]),
        ("a.json", '[\n {"a":\n 1},\n\n {"a": 2}, {"a": 3}]\n', [2, 5, 5]),
        ("a.csv", 'a,b\n1,"x\ny\nz"\n\n2,\n', [2, 6]),
    ],
)
def test_a_row_has_the_number_of_its_first_line(write, name, text, lines):
    assert [line for line, _ in read_rows(write(name, text))] == lines


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    records=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=6),
    indent=st.none() | st.integers(0, 2),
    escaped=st.booleans(),
    window=st.integers(1, 40),
)
def test_a_list_is_read_with_any_window_size(tmp_path_factory, records, indent, escaped, window):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=escaped), encoding="utf-8", newline="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "WINDOW_CHARS", window)
        result = read_rows(path)

    assert [row for _, row in result] == records
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all("{" in lines[line - 1] for line, _ in result)


def test_equal_keys_in_different_objects_are_accepted(write):
    assert row_values(write("a.jsonl", '{"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}')) == [
        {"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}
    ]


def test_a_field_of_a_megabyte_is_read(write):
    assert row_values(write("a.csv", "a,b\n1," + "x" * 1_000_000))[0]["b"] == "x" * 1_000_000


def test_rows_that_are_only_counted_are_not_parsed(write):
    (chunk,) = readers.read_chunks(write("a.jsonl", '{"a": 1}\nbroken\n'))

    assert len(chunk.lines) == 2
    assert chunk.read([0]) == [b'{"a": 1}']
