"""Reading files: every kind gives the same rows, and a file that is not whole is told with its line."""

import csv
import datetime
import decimal
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, Json, List, Value
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tuneline.data import schema
from tuneline.data.ingest import readers
from tuneline.data.ingest.readers import json_array
from tuneline.errors import DataError, SourceError

ROWS = [
    {"q": "one\u2028line\u2029here", "a": 'a "quote", a comma\nand a line'},
    {"q": "二", "a": ""},
    {"q": "x", "a": "\\"},
]


def read(path):
    """Return lines with rows."""
    found = []
    for chunk in readers.read_chunks(path):
        texts = chunk.read(range(len(chunk.lines)))
        found += zip(chunk.lines, map(json.loads, texts), strict=True)
    return found


def rows(path):
    return [row for _, row in read(path)]


def blank(path):
    return sum(chunk.num_blank for chunk in readers.read_chunks(path))


def bad(path):
    return [(line, row[schema.BAD_ROW_KEY]) for line, row in read(path) if schema.BAD_ROW_KEY in row]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def as_csv(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def zst(data):
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


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_kind_of_text_gives_the_same_rows(write, kind, ending, pack, mark):
    assert rows(write(f"a.{kind}{ending}", pack(mark + TEXTS[kind].encode()))) == ROWS


def test_tables_give_the_same_rows(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)

    for path in (tmp_path / "a.parquet", tmp_path / "saved" / "data-00000-of-00001.arrow", tmp_path / "file.arrow"):
        assert read(path) == list(enumerate(ROWS, start=1))


def test_lines_of_text_are_rows(write):
    path = write("a.txt", b"  one\xe2\x80\xa8still one \r\n\n \t\n\xe3\x80\x80\ntwo")

    assert read(path) == [(1, {"text": "  one\u2028still one "}), (5, {"text": "two"})]
    assert blank(path) == 3


def test_a_row_keeps_its_own_text(write):
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
def test_a_row_knows_the_line_at_which_it_begins(write, name, text, lines):
    assert [line for line, _ in read(write(name, text))] == lines


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
def test_a_list_is_read_whatever_the_window_cuts(tmp_path_factory, records, indent, escaped, window):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=escaped), encoding="utf-8", newline="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "WINDOW_CHARS", window)
        found = read(path)

    assert [row for _, row in found] == records
    whole = path.read_text(encoding="utf-8").split("\n")
    assert all("{" in whole[line - 1] for line, _ in found)


@pytest.mark.parametrize("window", [3, 1 << 18])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n]', r"a.json:3: not valid JSON: a comma stands before the closing bracket"),
        ('[{"a": 1}\n{"a": 2}]', r"a.json:2: not valid JSON: Expecting ',' delimiter at column 1"),
        ('[{"a": 1},\n {"a": "x', r"a.json:2: not valid JSON: Unterminated string starting at at column 8"),
        ('[{"a": 1}\n', r"a.json:2: not valid JSON: the file ends inside the list"),
        ('[{"a":\n tru}]', r"a.json:2: not valid JSON: Expecting value at column 2, near .*tru"),
        ('[{"a": 1}]\n[]', r"a.json:2: not valid JSON: the list is closed, and more text follows"),
        ('[\n{"a": 1}, 3]', r"a.json:2: a row must be a JSON object, got int 3"),
        ('[{"a": 1},\n{"a": NaN}]', r"a.json:2: NaN is no JSON number"),
        ('"text"', r"a.json:1: not valid JSON: expected a list of rows"),
        ("\n\n", r"a.json:3: not valid JSON: expected a list of rows"),
    ],
)
def test_a_list_that_is_none_is_told_with_its_line(write, monkeypatch, text, message, window):
    monkeypatch.setattr(json_array, "WINDOW_CHARS", window)

    with pytest.raises(DataError, match=message):
        read(write("a.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\n{"a": 1}\n{"a": 2}\n', r"a.json:2: .* got one object a line. Name the file .jsonl"),
        ('{"data": [{"a": 1}]}', r"got one object whose 'data' holds a list. Write that list alone if it is the rows"),
        ('{"a \\" b": {\n"q": 1}}', r"""got one object keyed by 'a \\\\" b' and so on. Write its values as a list"""),
        ('{"q":\n "one"}', r"got one object that begins with 'q'. Write \[ \] around it if it is one row."),
    ],
)
def test_an_object_where_a_list_should_be_is_told_what_it_is(write, text, message):
    with pytest.raises(DataError, match=message):
        read(write("a.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"a.jsonl:2: not valid JSON: Expecting value at column 6"),
        (
            b"[1]\n",
            r"a.jsonl:1: a row must be a JSON object, got list \[1\]. Name the file .json if it holds one list.",
        ),
        (b"[\n{}\n]\n", r"a.jsonl:1: the line holds '\[' alone, .* Name the file .json if it holds one list."),
        (b'{"a": Infinity}', r"a.jsonl:1: Infinity is no JSON number; null stands for a missing one. Mend the row."),
        (b'{"a": -1e999}', r"a.jsonl:1: the number -1e999 is too large"),
        (b'\n{"a": 1, "b": 2, "a": 3}', r"a.jsonl:2: the key 'a' stands twice in one object"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", r"a.jsonl:1: its values are nested too deeply. Mend the row."),
        (b'{"a": "x\ty"}', r"a.jsonl:1: not valid JSON: Invalid control character"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"a.jsonl:2: byte 0xe9 at offset 19 is not UTF-8. Save the file as UTF-8"),
    ],
)
def test_a_line_that_is_no_row_is_told(write, text, message):
    with pytest.raises(DataError, match=message):
        read(write("a.jsonl", text))


def test_equal_keys_in_different_objects_are_no_fault(write):
    assert rows(write("a.jsonl", '{"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}')) == [
        {"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}
    ]


def test_half_of_a_surrogate_pair_makes_a_bad_row(write):
    path = write("a.jsonl", '{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n')

    assert bad(path) == [(1, "a text holds half of a surrogate pair, so it is no Unicode text")]
    assert rows(path)[1] == {"a": "😀"}


@pytest.mark.parametrize(
    ("name", "text", "offset"),
    [("a.json", '[{"a": 1},\n{"a": "é"}]', 18), ("a.csv", "a,b\n1,é\n", 6), ("a.txt", "one\né\n", 4)],
)
def test_bytes_that_are_no_utf8_are_told_with_their_place(write, name, text, offset):
    with pytest.raises(DataError, match=rf"{name}:2: byte 0xe9 at offset {offset} is not UTF-8"):
        read(write(name, text.encode("latin-1")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "this is a git-LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.csv.gz", b"<!DOCTYPE html>\n<title>404</title>", "this is a web page, not data"),
        ("a.txt", b"\n <HTML><body>Sign in", "this is a web page, not data"),
        ("a.csv", "a,b\n".encode("utf-16"), r"this is UTF-16, not UTF-8. Save it as UTF-8"),
        ("a.txt", "one line\n".encode("utf-16-le"), r"this is no text in UTF-8: it holds zero bytes. Save it as UTF-8"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "packed with gzip, and its name does not say so. Add .gz"),
        ("a.jsonl", b"PAR1....", "this is a Parquet file, and its name does not say so. Name it .parquet."),
        ("a.jsonl.gz", gzip.compress(b"PK\x03\x04", mtime=0), "this is a zip archive. Unpack it."),
        (
            "a.jsonl.gz",
            b'{"a": 1}',
            r"a.jsonl.gz:1: this is not packed with gzip, though its name says so. Take .gz off the name.",
        ),
        ("a.parquet", b"PAR1" + bytes(64), "a.parquet:1: this is no whole Parquet file"),
        ("a.arrow", b"ARROW1" + bytes(64), "a.arrow:1: this is no whole Arrow file"),
        ("a.arrow", b"{}", "a.arrow:1: this is no whole Arrow file"),
    ],
)
def test_what_is_no_data_is_told_for_what_it_is(write, name, content, message):
    with pytest.raises(SourceError, match=message):
        read(write(name, content))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_an_empty_file_is_refused(write, name):
    with pytest.raises(DataError, match=rf"{name}:1: the file is empty"):
        read(write(name, b""))


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zst)])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_download_that_was_cut_is_told_with_its_line(write, kind, ending, pack):
    lines = np.random.default_rng(0).integers(0, 10**9, 20_000)
    body = {
        "csv": "a\n" + "\n".join(f'"{n}"' for n in lines),
        "tsv": "a\n" + "\n".join(map(str, lines)),
        "jsonl": "\n".join(f'{{"a": {n}}}' for n in lines),
        "json": "[" + ",\n".join(f'{{"a": {n}}}' for n in lines) + "]",
    }[kind]
    path = write(f"a.{kind}.{ending}", pack(body.encode())[:-1000])

    with pytest.raises(SourceError, match=rf"a.{kind}.{ending}:\d+: .* its download was interrupted"):
        read(path)


def test_a_stream_that_was_cut_between_batches_is_told(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[:-8])

    with pytest.raises(SourceError, match=r"no whole Arrow file \(the end mark is missing\)"):
        read(tmp_path / "a.arrow")


def test_torn_records_become_bad_rows(write):
    path = write("a.csv", 'a,b\n1,2\n3\n,\n"x"y,4\n5,6,7\n\n8,"never closed\n9,10\n')

    assert bad(path) == [
        (3, "a CSV record with 1 fields where the header has 2"),
        (4, "a CSV record whose fields are all blank"),
        (5, "a CSV record that does not parse (',' expected after '\"')"),
        (6, "a CSV record with 3 fields where the header has 2"),
        (8, "a CSV record that does not parse (unexpected end of data)"),
    ]
    assert rows(path)[0] == {"a": "1", "b": "2"}
    assert blank(path) == 1


def test_a_field_of_a_megabyte_is_read(write):
    assert rows(write("a.csv", "a,b\n1," + "x" * 1_000_000))[0]["b"] == "x" * 1_000_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: two columns are called 'a'"),
        ("a.csv", "a;b\n1;2\n", r"a.csv:1: the header is one column, 'a;b'; ';' seems to divide it"),
        ("a.tsv", "a,b\n1,2\n", r"a.tsv:1: the header is one column, 'a,b'; ',' seems to divide it"),
        ("a.csv", "a,b\n\n", "a.csv:1: there is a header and no row"),
        ("a.csv", "\n\n", r"a.csv:1: there is no header \(blank lines only\)"),
        ("a.csv", '\n"a"b,c\n1,2\n', r"a.csv:2: there is no header \(a CSV record that does not parse"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(write, name, text, message):
    with pytest.raises(DataError, match=message):
        read(write(name, text))


def test_values_of_tables_become_what_json_has(tmp_path):
    row = {
        "day": datetime.date(2024, 2, 29),
        "at": datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "price": decimal.Decimal("1.10"),
        "turns": [{"role": "user", "n": 2**60}],
        "none": None,
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")

    assert rows(tmp_path / "a.parquet") == [
        {
            "day": "2024-02-29",
            "at": "2024-01-02T03:04:05+00:00",
            "price": "1.10",
            "turns": [{"role": "user", "n": 2**60}],
            "none": None,
        }
    ]


def test_json_columns_of_datasets_become_what_they_hold(tmp_path):
    features = Features({"calls": List(Json()), "score": Value("float64")})
    Dataset.from_dict({"calls": [[{"b": 0}, {"c": "x"}]], "score": [0.5]}, features=features).save_to_disk(
        tmp_path / "a"
    )

    assert rows(tmp_path / "a" / "data-00000-of-00001.arrow") == [{"calls": [{"b": 0}, {"c": "x"}], "score": 0.5}]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"t": ["x"], "picture": [{"bytes": b"1", "path": "p"}]}), "the column 'picture' holds bytes"),
        (pa.table({"deep": [[[b"1"]]]}), "the column 'deep' holds bytes"),
        (pa.table([["x"], ["y"]], names=["t", "t"]), "two columns are called 't'"),
        (pa.table({"t": [1.0, float("nan")]}), r"a.arrow:2: a value cannot be written as JSON \(Out of range float"),
    ],
)
def test_what_is_no_text_in_a_table_is_refused(tmp_path, table, message):
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.arrow")


def test_a_column_of_images_is_refused(tmp_path):
    features = Features({"text": Value("string"), "image": Image()})
    data = Dataset.from_dict({"text": ["x"], "image": [{"path": "p.png", "bytes": b"1"}]}, features=features)
    data.with_format("arrow").to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"the column 'image' holds bytes \(images, sounds or the like\)"):
        read(tmp_path / "a.parquet")


def test_rows_that_are_only_counted_are_not_parsed(write):
    (chunk,) = readers.read_chunks(write("a.jsonl", '{"a": 1}\nbroken\n'))

    assert len(chunk.lines) == 2
    assert chunk.read([0]) == [b'{"a": 1}']


def test_the_public_malformed_files_are_told_for_what_they_are(test_data):
    folder = test_data / "malformed"
    for name, error, message in [
        ("garbage_prefix.jsonl", DataError, r":1: not valid JSON: Expecting value at column 1, near 'rug"),
        ("alpaca_zh_trailing_comma.json.gz", DataError, r":14007: not valid JSON: a comma stands before the closing"),
        ("lfs_pointer_dolly.jsonl", SourceError, r":1: this is a git-LFS pointer"),
        ("conversation_missing_turns.json", DataError, r"one object whose 'conversations' holds a list"),
        ("../pubmed/ori_pqal.json.gz", DataError, r"one object keyed by '21645374' and so on"),
    ]:
        with pytest.raises(error, match=message):
            read(folder / name)


def test_a_public_torn_csv_shows_its_blank_records(test_data):
    path = test_data / "malformed" / "cnn_dailymail_broken.csv.gz"

    assert len(rows(path)) == 68_061
    assert {reason for _, reason in bad(path)} == {"a CSV record whose fields are all blank"}
    assert len(bad(path)) == 66_713
