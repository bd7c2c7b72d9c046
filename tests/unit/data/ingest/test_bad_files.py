"""Files that are not data, or change during a run: each error is one line with location, cause and fix."""

import gzip
import json
import shutil

import pytest
import zstandard

from tests import tiny
from tests.data_rows import ALPACA, ALPACA_LINES, FIX_ROW, QUESTIONS, alpaca, lines
from tuneline.config import load
from tuneline.config.sections.sources import IngestConfig
from tuneline.data.ingest import ingest
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")

AS_TEXT = (
    "but a .txt file is read as plain text, one row per line. Rename the file to {kind}; to train on the JSON itself, "
    "write it as text into a column `text`."
)


# files

FILES = {
    "empty": ("d.jsonl", "", "FILE:1: the file is empty. Use a file with at least one row."),
    "blank lines": ("d.jsonl", "\n\n", "sources.d: FILE holds no rows. Use a file with at least one row."),
    "empty list": ("d.json", "[]", "sources.d: FILE holds no rows. Use a file with at least one row."),
    "cut list": (
        "d.json",
        json.dumps(ALPACA)[:700],
        'FILE:1: not valid JSON: Expecting \',\' delimiter at column 701, near \'and 9?", "input": ""\'. The text ends '
        "inside a row: complete it, or download the file again.",
    ),
    "cut text in a list": (
        "d.json",
        '[\n{"a": "one"},\n{"a": "tw',
        'FILE:3: not valid JSON: Unterminated string starting at at column 7, near \'{"a": "tw\'. The text ends inside '
        "a row: complete it, or download the file again.",
    ),
    "trailing comma": (
        "d.json",
        '[\n{"instruction": "a", "output": "b"},\n]',
        "FILE:3: not valid JSON: trailing comma before the closing bracket at column 1, near ']'. Correct the "
        "syntax there.",
    ),
    "bad line": (
        "d.jsonl",
        lines(*ALPACA[:3], '{"instruction": "a", "output": }', *ALPACA[3:]),
        'FILE:4: not valid JSON: Expecting value at column 32, near \'on": "a", "output": }\'. Correct the syntax '
        "there.",
    ),
    "list in .jsonl": (
        "d.jsonl",
        json.dumps([{"instruction": "a", "output": "b"}]),
        "FILE:1: a row must be a JSON object, got list [{'instruction': 'a', 'output': 'b'}]. Rename the file to "
        ".json if "
        "it holds one list.",
    ),
    "list over lines in .jsonl": (
        "d.jsonl",
        json.dumps(ALPACA, indent=1),
        "FILE:1: the line holds only '[', but JSON Lines have one object per line. Rename the file to .json if it "
        "holds one list.",
    ),
    "lines in .json": (
        "d.json",
        ALPACA_LINES,
        "FILE:1: expected a JSON list of rows, got one object per line. Rename the file to .jsonl.",
    ),
    "object of rows": (
        "d.json",
        json.dumps({"a": ALPACA[0], "b": ALPACA[1]}),
        "FILE:1: expected a JSON list of rows, got one object with keys such as 'a' and objects as values. Convert it "
        "to a list, with the key as a column.",
    ),
    "list inside an object": (
        "d.json",
        json.dumps({"data": ALPACA}),
        "FILE:1: expected a JSON list of rows, got one object whose 'data' holds a list. Keep that list only if it "
        "holds the rows, or add [ ] if the object is a row.",
    ),
    "numbers": ("d.jsonl", "1\n2\n", "FILE:1: a row must be a JSON object, got int 1."),
    "no number": (
        "d.jsonl",
        lines(*ALPACA, '{"instruction": "a", "output": NaN}'),
        "FILE:41: NaN is not a JSON number; use null for a missing value. Fix the row.",
    ),
    "key twice": (
        "d.jsonl",
        lines(*ALPACA, '{"instruction": "a", "output": "b", "output": "c"}'),
        "FILE:41: duplicate key 'output' in one object; one of its values would be lost. Fix the row.",
    ),
    "lines of JSON in .txt": (
        "d.txt",
        ALPACA_LINES,
        "FILE:1: its lines are JSON objects, " + AS_TEXT.format(kind=".jsonl"),
    ),
    "a list of JSON in .txt": (
        "d.txt.gz",
        gzip.compress(json.dumps(ALPACA, indent=1).encode()),
        "FILE:1: it holds one JSON value, " + AS_TEXT.format(kind=".json"),
    ),
    "UTF-16": (
        "d.jsonl",
        ALPACA_LINES.encode("utf-16"),
        "FILE:1: the file is UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    ),
    "UTF-16 without its mark": (
        "d.jsonl",
        ALPACA_LINES.encode("utf-16-le"),
        "FILE:1: not UTF-8 text: the file holds zero bytes. Save it as UTF-8.",
    ),
    "Latin-1": (
        "d.jsonl",
        (ALPACA_LINES + '{"instruction": "café", "output": "b"}\n').encode("latin-1"),
        "FILE:41: byte 0xe9 at offset 2955 is not UTF-8. Save the file as UTF-8 (`iconv -f latin1 -t utf-8` if it "
        "is Latin-1).",
    ),
    "Latin-1 in a table": (
        "d.csv",
        "instruction,output\ncafé,b\n".encode("latin-1"),
        "FILE:2: byte 0xe9 at offset 22 is not UTF-8. Save the file as UTF-8 (`iconv -f latin1 -t utf-8` if it is "
        "Latin-1).",
    ),
    "header alone": (
        "d.csv",
        "instruction,output\n",
        "FILE:1: the file has a header but no rows. Use a file with at least one row.",
    ),
    "semicolons": (
        "d.csv",
        "instruction;output\na;b\n",
        "FILE:1: the header has one column, 'instruction;output'; the delimiter seems to be ';'. Use commas in .csv "
        "files "
        "and tabs in .tsv files.",
    ),
    "web page": (
        "d.jsonl",
        "<!DOCTYPE html><html>404</html>",
        "FILE:1: the file is a web page, not data; most likely an error page. Download the file again.",
    ),
    "cut gzip": (
        "d.jsonl.gz",
        gzip.compress(ALPACA_LINES.encode())[:-12],
        "FILE:1: the file cannot be decompressed after this line (Truncated compressed stream). Most likely its "
        "download "
        "was interrupted: download it again.",
    ),
    "cut zstd": (
        "d.jsonl.zst",
        zstandard.compress(ALPACA_LINES.encode())[:-12],
        "FILE:1: the file cannot be decompressed after this line (Truncated compressed stream). Most likely its "
        "download was interrupted: download it again.",
    ),
    "cut gzip of a list": (
        "d.json.gz",
        gzip.compress(json.dumps(ALPACA).encode())[:200],
        "FILE:1: the file cannot be decompressed after this line (Truncated compressed stream). Most likely its "
        "download "
        "was interrupted: download it again.",
    ),
    "gzip by name alone": (
        "d.jsonl.gz",
        ALPACA_LINES,
        "FILE:1: the file is not compressed with gzip, although its name ends in .gz. Remove .gz from the name.",
    ),
    "gzip under another name": (
        "d.jsonl",
        gzip.compress(ALPACA_LINES.encode()),
        "FILE:1: the file is compressed with gzip, but its name does not end in .gz. Add .gz to the name.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_data_is_reported_with_its_line(case, error_of):
    name, content, expected = FILES[case]

    error, message = error_of({name: content})

    assert message.replace(f"HERE/data/{name}", "FILE") == expected
    assert error in (DataError, SourceError)


MALFORMED = {
    "alpaca_zh_trailing_comma.json.gz": (
        "FILE:14007: not valid JSON: trailing comma before the closing bracket at column 1, near ']'. Correct the "
        "syntax there."
    ),
    "conversation_missing_turns.json": (
        "FILE:1: expected a JSON list of rows, got one object whose 'conversations' holds a list. Keep that list "
        "only if it holds the rows, or add [ ] if the object is a row."
    ),
    "garbage_prefix.jsonl": (
        'FILE:1: not valid JSON: Expecting value at column 1, near \'rug{"query": "Below\'. Correct the syntax there.'
    ),
    "lfs_pointer_dolly.jsonl": (
        "FILE:1: the file is a git-LFS pointer, not the data. Fetch the data with `git lfs pull`."
    ),
    "sharegpt_irregular.jsonl.gz": f"sharegpt_irregular.jsonl.gz:1: turn 3 (user) is empty. {FIX_ROW}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_the_public_malformed_files_are_refused(name, error_of, test_data):
    _, message = error_of({name: (test_data / "malformed" / name).read_bytes()})

    assert message.replace(f"HERE/data/{name}", "FILE") == MALFORMED[name]


def test_a_public_damaged_table_is_refused_even_if_bad_rows_are_dropped(prepare, test_data):
    name = "cnn_dailymail_broken.csv.gz"
    columns = {"columns": {"instruction": "article", "output": "highlights"}}

    with pytest.raises(DataError) as caught:
        prepare({name: (test_data / "malformed" / name).read_bytes()}, columns, align={"bad_rows": "drop"})

    assert str(caught.value).startswith(
        "sources.d: 67601 of 68061 rows cannot be used, more than align.max_bad_fraction 0.5 allows (a CSV record with "
        "blank fields only: 66713; empty user turn: 448; empty assistant turn: 440). Fix the rows, or "
        "raise max_bad_fraction. First bad row: cnn_dailymail_broken.csv.gz:3: a CSV record with blank fields only"
    )


def test_every_public_malformed_file_is_tested(test_data):
    names = {path.name for path in (test_data / "malformed").iterdir()}

    assert names == {*MALFORMED, "cnn_dailymail_broken.csv.gz"}


def test_files_with_different_columns_are_refused(error_of):
    _, message = error_of({"a.jsonl": ALPACA_LINES, "b.jsonl": QUESTIONS}, {"path": "data"})

    assert message == (
        "sources.d: its files have different columns: only a.jsonl has ['input', 'instruction', 'output'], only "
        "b.jsonl has ['answer', 'question']. Make them separate datasets, or rename the columns."
    )


# while a run goes on


@pytest.fixture
def dataset_file(tmp_path):
    """The file of a dataset, and its manifest."""
    path = tiny.write_jsonl(tmp_path / "data" / "d.jsonl", ALPACA)
    recipe = load.load(
        tiny.write_config(tmp_path / "run.yaml", tiny.recipe(sources=[{"name": "d", "path": "data/d.jsonl"}]))
    ).recipe
    return path, ingest.locate_sources(recipe.sources)


def test_a_file_that_changes_while_it_is_read_is_reported(dataset_file, monkeypatch):
    _, sources = dataset_file
    read = ingest.readers.read_chunks

    def changed(path):
        yield from read(path)
        path.write_text(ALPACA_LINES + lines(alpaca("one", "more")))

    monkeypatch.setattr(ingest.readers, "read_chunks", changed)
    with pytest.raises(SourceError) as caught:
        ingest.ingest(sources, IngestConfig(name="d"))

    assert str(caught.value) == "d: d.jsonl changed during the run. Start the run again to use the new content."


def test_a_file_truncated_during_reading_is_reported_as_changed(dataset_file, monkeypatch):
    _, sources = dataset_file
    read = ingest.readers.read_chunks

    def cut(path):
        path.write_text(ALPACA_LINES[:-30])
        yield from read(path)

    monkeypatch.setattr(ingest.readers, "read_chunks", cut)
    with pytest.raises(SourceError) as caught:
        ingest.ingest(sources, IngestConfig(name="d"))

    assert str(caught.value) == "d: d.jsonl changed during the run. Start the run again to use the new content."


def test_a_file_deleted_before_reading_is_reported(dataset_file):
    path, sources = dataset_file
    shutil.rmtree(path.parent)

    with pytest.raises(SourceError) as caught:
        ingest.ingest(sources, IngestConfig(name="d"))

    assert str(caught.value) == f"d: {path} was removed after it had been located. Restore it, or start the run again."
