"""Malformed files: each error has the line, the cause and the fix."""

import gzip

import numpy as np
import pytest

from tests.reader_rows import TEXTS, bad_rows, compress_zstd, count_blank, read_rows, row_values
from tuneline.data.ingest.readers import json_array
from tuneline.errors import DataError, SourceError


@pytest.mark.parametrize("window", [3, 1 << 18])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n]', r"a.json:3: not valid JSON: trailing comma before the closing bracket"),
        ('[{"a": 1}\n{"a": 2}]', r"a.json:2: not valid JSON: Expecting ',' delimiter at column 1"),
        ('[{"a": 1},\n {"a": "x', r"a.json:2: not valid JSON: Unterminated string starting at at column 8"),
        ('[{"a": 1}\n', r"a.json:2: not valid JSON: the file ends inside the list"),
        ('[{"a":\n tru}]', r"a.json:2: not valid JSON: Expecting value at column 2, near .*tru"),
        ('[{"a": 1}]\n[]', r"a.json:2: not valid JSON: unexpected text after the list"),
        ('[\n{"a": 1}, 3]', r"a.json:2: a row must be a JSON object, got int 3"),
        ('[{"a": 1},\n{"a": NaN}]', r"a.json:2: NaN is not a JSON number"),
        ('"text"', r"a.json:1: not valid JSON: expected a list of rows"),
        ("\n\n", r"a.json:3: not valid JSON: expected a list of rows"),
    ],
)
def test_an_invalid_json_list_is_reported_with_its_line(write, monkeypatch, text, message, window):
    monkeypatch.setattr(json_array, "WINDOW_CHARS", window)

    with pytest.raises(DataError, match=message):
        read_rows(write("a.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\n{"a": 1}\n{"a": 2}\n', r"a.json:2: .* got one object per line. Rename the file to .jsonl"),
        ('{"data": [{"a": 1}]}', r"got one object whose 'data' holds a list. Keep that list only if it holds the rows"),
        (
            '{"a \\" b": {\n"q": 1}}',
            r"""got one object with keys such as 'a \\\\" b' and objects as values. Convert it to a list""",
        ),
        ('{"q":\n "one"}', r"got one object that begins with 'q'. Add \[ \] if it is a row."),
    ],
)
def test_an_object_in_place_of_a_list_is_reported(write, text, message):
    with pytest.raises(DataError, match=message):
        read_rows(write("a.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"a.jsonl:2: not valid JSON: Expecting value at column 6"),
        (
            b"[1]\n",
            r"a.jsonl:1: a row must be a JSON object, got list \[1\]. Rename the file to .json if it holds one list.",
        ),
        (b"[\n{}\n]\n", r"a.jsonl:1: the line holds only '\[', .* Rename the file to .json if it holds one list."),
        (b'{"a": Infinity}', r"a.jsonl:1: Infinity is not a JSON number; use null for a missing value. Fix the row."),
        (b'{"a": -1e999}', r"a.jsonl:1: the number -1e999 is too large"),
        (b'\n{"a": 1, "b": 2, "a": 3}', r"a.jsonl:2: duplicate key 'a' in one object"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", r"a.jsonl:1: its values are nested too deeply. Fix the row."),
        (b'{"a": "x\ty"}', r"a.jsonl:1: not valid JSON: Invalid control character"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"a.jsonl:2: byte 0xe9 at offset 19 is not UTF-8. Save the file as UTF-8"),
    ],
)
def test_a_line_that_is_not_a_row_is_reported(write, text, message):
    with pytest.raises(DataError, match=message):
        read_rows(write("a.jsonl", text))


def test_an_unpaired_surrogate_gives_a_bad_row(write):
    path = write("a.jsonl", '{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n')

    assert bad_rows(path) == [(1, "a text holds a lone surrogate, so it is not valid Unicode")]
    assert row_values(path)[1] == {"a": "😀"}


@pytest.mark.parametrize(
    ("name", "text", "offset"),
    [("a.json", '[{"a": 1},\n{"a": "é"}]', 18), ("a.csv", "a,b\n1,é\n", 6), ("a.txt", "one\né\n", 4)],
)
def test_bytes_that_are_not_utf8_are_reported_with_their_location(write, name, text, offset):
    with pytest.raises(DataError, match=rf"{name}:2: byte 0xe9 at offset {offset} is not UTF-8"):
        read_rows(write(name, text.encode("latin-1")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "the file is a git-LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.csv.gz", b"<!DOCTYPE html>\n<title>404</title>", "the file is a web page, not data"),
        ("a.txt", b"\n <HTML><body>Sign in", "the file is a web page, not data"),
        ("a.csv", "a,b\n".encode("utf-16"), r"the file is UTF-16, not UTF-8. Save it as UTF-8"),
        ("a.txt", "one line\n".encode("utf-16-le"), r"not UTF-8 text: the file holds zero bytes. Save it as UTF-8"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip, but its name does not end in .gz. Add .gz"),
        (
            "a.jsonl",
            b"PAR1....",
            "the file is a Parquet file, but its name does not end in .parquet. Rename it to .parquet.",
        ),
        ("a.jsonl.gz", gzip.compress(b"PK\x03\x04", mtime=0), "the file is a zip archive. Extract it."),
        (
            "a.jsonl.gz",
            b'{"a": 1}',
            r"a.jsonl.gz:1: the file is not compressed with gzip, although its name ends in .gz. Remove .gz from "
            r"the name.",
        ),
        ("a.parquet", b"PAR1" + bytes(64), "a.parquet:1: not a complete Parquet file"),
        ("a.arrow", b"ARROW1" + bytes(64), "a.arrow:1: not a complete Arrow file"),
        ("a.arrow", b"{}", "a.arrow:1: not a complete Arrow file"),
    ],
)
def test_files_that_are_not_data_are_reported_with_their_kind(write, name, content, message):
    with pytest.raises(SourceError, match=message):
        read_rows(write(name, content))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_an_empty_file_is_refused(write, name):
    with pytest.raises(DataError, match=rf"{name}:1: the file is empty"):
        read_rows(write(name, b""))


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", compress_zstd)])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_truncated_download_is_reported_with_its_line(write, kind, ending, pack):
    lines = np.random.default_rng(0).integers(0, 10**9, 20_000)
    body = {
        "csv": "a\n" + "\n".join(f'"{n}"' for n in lines),
        "tsv": "a\n" + "\n".join(map(str, lines)),
        "jsonl": "\n".join(f'{{"a": {n}}}' for n in lines),
        "json": "[" + ",\n".join(f'{{"a": {n}}}' for n in lines) + "]",
    }[kind]
    path = write(f"a.{kind}.{ending}", pack(body.encode())[:-1000])

    with pytest.raises(SourceError, match=rf"a.{kind}.{ending}:\d+: .* its download was interrupted"):
        read_rows(path)


def test_incomplete_records_are_bad_rows(write):
    path = write("a.csv", 'a,b\n1,2\n3\n,\n"x"y,4\n5,6,7\n\n8,"never closed\n9,10\n')

    assert bad_rows(path) == [
        (3, "a CSV record with 1 fields, but the header has 2"),
        (4, "a CSV record with blank fields only"),
        (5, "a CSV record that cannot be parsed (',' expected after '\"')"),
        (6, "a CSV record with 3 fields, but the header has 2"),
        (8, "a CSV record that cannot be parsed (unexpected end of data)"),
    ]
    assert row_values(path)[0] == {"a": "1", "b": "2"}
    assert count_blank(path) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: two columns are named 'a'"),
        ("a.csv", "a;b\n1;2\n", r"a.csv:1: the header has one column, 'a;b'; the delimiter seems to be ';'"),
        ("a.tsv", "a,b\n1,2\n", r"a.tsv:1: the header has one column, 'a,b'; the delimiter seems to be ','"),
        ("a.csv", "a,b\n\n", "a.csv:1: the file has a header but no rows"),
        ("a.csv", "\n\n", r"a.csv:1: the header is missing \(blank lines only\)"),
        ("a.csv", '\n"a"b,c\n1,2\n', r"a.csv:2: the header is missing \(a CSV record that cannot be parsed"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(write, name, text, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(name, text))


def test_public_malformed_files_are_reported_with_the_cause(test_data):
    folder = test_data / "malformed"
    for name, error, message in [
        ("garbage_prefix.jsonl", DataError, r":1: not valid JSON: Expecting value at column 1, near 'rug"),
        ("alpaca_zh_trailing_comma.json.gz", DataError, r":14007: not valid JSON: trailing comma before the closing"),
        ("lfs_pointer_dolly.jsonl", SourceError, r":1: the file is a git-LFS pointer"),
        ("conversation_missing_turns.json", DataError, r"one object whose 'conversations' holds a list"),
        ("../pubmed/ori_pqal.json.gz", DataError, r"one object with keys such as '21645374'"),
    ]:
        with pytest.raises(error, match=message):
            read_rows(folder / name)


def test_blank_records_of_a_public_damaged_csv_file_are_reported(test_data):
    path = test_data / "malformed" / "cnn_dailymail_broken.csv.gz"

    assert len(row_values(path)) == 68_061
    assert {reason for _, reason in bad_rows(path)} == {"a CSV record with blank fields only"}
    assert len(bad_rows(path)) == 66_713
