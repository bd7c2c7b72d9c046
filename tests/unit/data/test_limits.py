"""Data that would fill the memory or never end are refused with a line: long rows, packed files, pipes, devices."""

import gzip
import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests import tiny
from tuneline import identity, limits
from tuneline.config import existence, load
from tuneline.config.datasets import data_files, dataset_registry
from tuneline.data.chat_template import selection
from tuneline.data.ingest import readers
from tuneline.errors import RecipeError, SourceError, TunelineError

MIB = 1 << 20


@contextmanager
def at_most(seconds: int):
    """End a test that hangs, also where it waits for a pipe."""

    def stop(*_):
        raise AssertionError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def num_rows(path: Path) -> int:
    return sum(len(chunk.read(range(len(chunk.lines)))) for chunk in readers.read_chunks(path))


def refused(path: Path) -> str:
    with at_most(20), pytest.raises(TunelineError) as caught:
        num_rows(path)
    return str(caught.value)


ROW = {"text": "a"}
LONG_ROW = {"text": "a" * (4 * MIB)}


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    texts = [json.dumps(row) for row in rows]
    csv_texts = ["text", *(row["text"] for row in rows)]
    tables = {
        "jsonl": "\n".join(texts),
        "json": f"[{', '.join(texts)}]",
        "txt": "\n".join(row["text"] for row in rows),
        "csv": "\n".join(csv_texts),
    }
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(tables[path.suffix.removeprefix(".")])
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "csv", "parquet"])
def test_a_row_that_is_too_long_is_refused_with_its_place(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = written(tmp_path / f"a.{kind}", [ROW, ROW, LONG_ROW, ROW])
    place = {"json": 1, "csv": 4}.get(kind, 3)

    message = refused(path)

    assert message.startswith(f"{path}:{place}: the row is longer than 2 MiB.")
    assert "TUNELINE_MAX_ROW_BYTES" in message


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "csv", "parquet"])
def test_rows_below_the_limit_are_read(tmp_path, monkeypatch, kind):
    rows = [ROW, LONG_ROW, ROW, LONG_ROW, LONG_ROW]
    path = written(tmp_path / f"a.{kind}", rows)
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "6M")

    assert num_rows(path) == len(rows)


def test_a_csv_record_of_many_long_fields_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n" + ",".join(['"' + "line\n" * 100_000 + '"'] * 8))

    assert refused(path).startswith(f"{path}:3: the row is longer than 2 MiB.")


def test_a_small_packed_file_with_an_endless_line_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(80):
            file.write(b"a" * MIB)

    assert path.stat().st_size < MIB
    assert refused(path).startswith(f"{path}:2: the row is longer than 64 MiB.")


def test_a_small_packed_file_with_lines_without_end_is_refused(tmp_path, monkeypatch):
    num_lines = 300_000
    monkeypatch.setenv("TUNELINE_MIN_UNPACKED_BYTES", "2M")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * num_lines))

    message = refused(path)

    assert "unpack to more than 2 MiB, and to more than 200 times its size" in message
    monkeypatch.setenv("TUNELINE_MAX_UNPACKED_RATIO", "2000")
    assert num_rows(path) == num_lines


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    rows = pa.table({"text": [f"{i:08}" + "a" * 100_000 for i in range(100)]})
    parquet.write_table(rows, path, compression="zstd", use_dictionary=False)
    assert num_rows(path) == 100

    monkeypatch.setenv("TUNELINE_MIN_UNPACKED_BYTES", "1M")

    assert "times its size" in refused(path)


def test_bad_bytes_in_a_list_on_one_long_line_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b", ".join([json.dumps(ROW).encode()] * 200_000) + b', {"text": "\xe9"}]')

    assert f"{path}:1: the file cannot be read" in refused(path)


KINDS = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to(path.with_name("gone")),
}
WORDS = {"pipe": "named pipe", "device": "device", "loop": "leads to itself", "nowhere": "there"}


def a_project(folder: Path, **changes) -> Path:
    for name in ("first", "second"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / name).write_text("{}")
    return tiny.write_config(folder / "run.yaml", tiny.recipe(exams=[], **changes))


def plan_of(path: Path) -> str:
    with at_most(20), pytest.raises(TunelineError) as caught:
        existence.check(load.load(path).recipe)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("run.yaml", {}),
        ("data/first.jsonl", {}),
        ("mine.jinja", {"template": "mine.jinja"}),
        ("task.yaml", {"exams": [{"name": "e", "engine": "lm_eval", "task": "task.yaml", "metrics": ["acc"]}]}),
        ("gate.yaml", {"registry": {"model_name": "tiny", "gate": "gate.yaml"}}),
        ("mine.yaml", {"datasets": "mine.yaml", "sources": [{"dataset": "a"}]}),
        ("exam.zip", {"exams": [{"name": "exam", "path": "exam.zip"}]}),
        ("model.gguf", {"model": {"type": "gguf", "path": "model.gguf"}}),
        ("model/notes.txt", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_file_is_never_opened(tmp_path, kind, name, changes):
    recipe = a_project(tmp_path)
    if changes:
        tiny.write_config(recipe, tiny.recipe(**{"exams": []} | changes))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    if name == "model/notes.txt" and kind in ("loop", "nowhere"):
        return  # a stray link beside a model harms nobody

    message = plan_of(recipe)

    assert WORDS[kind] in message
    assert path.name in message or kind == "device"


def test_a_pipe_among_the_files_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "b.jsonl")

    with at_most(20), pytest.raises(SourceError, match=r"b.jsonl is a named pipe"):
        data_files.find(tmp_path)


def test_a_folder_that_holds_itself_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "again").symlink_to(tmp_path)

    with at_most(20):
        assert data_files.find(tmp_path).paths == [tmp_path / "a.jsonl"]


def test_a_pipe_that_took_a_files_place_is_neither_read_nor_hashed(tmp_path):
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)

    assert "named pipe" in refused(path)
    with at_most(20), pytest.raises(SourceError, match="named pipe"):
        identity.sha256_of(path)


ALIASES = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "m0: &m0 {k0: a}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}], k{i}: a}}\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (ALIASES, "more than 100,000 values, aliases written out"),
        (MERGES, "more than 100,000 values, aliases written out"),
        ("a: &a\n  b: *a\n", "stands inside the value that it names"),
        ("a: &a [*a]\n", "stands inside the value that it names"),
        ("a: &a {<<: *a}\n", "stands inside the value that it names"),
        ("a: " + "[" * 3000 + "]" * 3000 + "\n", "nested more than 64 deep"),
        ("a: " + "{a: " * 3000 + "\n", "nested more than 64 deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(900)), "nested more than 64 deep"),
        ("a: *" + "b" * 10 + "\n", "undefined alias"),
    ],
    ids=["aliases", "merges", "self", "self list", "self merge", "brackets", "braces", "blocks", "undefined"],
)
def test_yaml_that_multiplies_or_nests_without_end_is_refused_with_its_line(tmp_path, text, what):
    path = a_project(tmp_path)
    head = path.read_text()
    path.write_text(head + text)

    with at_most(60), pytest.raises(RecipeError) as caught:
        load.load(path)

    place, line, said = str(caught.value).split(":", 2)
    assert (place, what in said) == (str(path), True)
    assert int(line) > head.count("\n")


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"a":\n' + '{"b":' * 3000 + "1" + "}" * 3001])
def test_json_that_nests_without_end_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "dataset_info.json"
    path.write_text(text)
    place = f"dataset_info.json:{1 + text.count(chr(10))}: "

    with at_most(20), pytest.raises(RecipeError, match=f"{place}values are nested"):
        dataset_registry.read(path)


def test_brackets_inside_words_are_no_nesting(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"a": {"file_name": "[" * 100 + '"{' * 50 + ".json"}}))

    assert list(dataset_registry.read(path).entries) == ["a"]


def test_aliases_that_save_typing_are_kept(tmp_path):
    path = a_project(tmp_path)
    path.write_text(path.read_text() + "tags: &tags [a, b]\nextra: {pipeline: sft_pipeline}\nsettings: {mine: *tags}\n")

    assert load.load(path).content["settings"] == {"mine": ["a", "b"]}


def test_a_file_of_settings_that_is_far_too_large_is_not_read(tmp_path):
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(20 * MIB)

    with at_most(20), pytest.raises(RecipeError, match="at most 2 MiB are read"):
        load.load(path)


@pytest.mark.parametrize(
    "number",
    ["0x" + "f" * 9000, "9" * 5000, "1" + ":1" * 300_000, "1" + ":1" * 3000 + ".5", "9" * 5000 + ".5"],
    ids=["hex", "digits", "base 60", "fraction to the base 60", "fraction"],
)
def test_a_number_of_thousands_of_digits_is_refused_with_its_line(tmp_path, number):
    path = a_project(tmp_path)
    path.write_text(path.read_text().replace("max_steps: 2", f"max_steps: {number}"))

    with at_most(20), pytest.raises(RecipeError, match=r"run.yaml:\d+: a number of [\d,]+ characters is none"):
        load.load(path)


def test_a_number_of_thousands_of_digits_in_json_is_refused(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"a": {"file_name": "a.json", "num_samples": ' + "9" * 5000 + "}}")

    with pytest.raises(RecipeError, match=r"dataset_info.json: a value cannot be read \(Exceeds the limit"):
        dataset_registry.read(path)


def test_a_text_in_json_that_does_not_end_is_found_at_once(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"a": "' + '\\"' * 500_000)

    with at_most(20), pytest.raises(RecipeError, match=r"dataset_info.json:1: not valid JSON: unterminated string"):
        dataset_registry.read(path)


MANY = 20_000


def test_rows_of_very_many_columns_are_read_in_time(tmp_path):
    names = [f"k{i}" for i in range(MANY)]
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps(dict.fromkeys(names, 1)) + "\n")
    table = tmp_path / "a.csv"
    table.write_text(f"{','.join(names)}\n{','.join('1' * MANY)}\n")
    columns = tmp_path / "a.parquet"
    parquet.write_table(pa.table({name: [1] for name in names[: MANY // 5]}), columns)

    with at_most(20):
        assert [num_rows(path) for path in (lines, table, columns)] == [1, 1, 1]


def test_a_key_that_stands_twice_among_very_many_is_found_in_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{" + ",".join(f'"k{i}":1' for i in range(MANY)) + ',"k7":1}\n')

    assert "the key 'k7' stands twice" in refused(path)


@pytest.mark.parametrize("value", ["", "many", "-1", "0", "1.5", "1T", "9" * 30])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", value)

    with pytest.raises(RecipeError, match="TUNELINE_MAX_ROW_BYTES is "):
        limits.ROW_BYTES.value()


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("2k", 2048), ("3M", 3 * MIB), ("1GB", 1 << 30)])
def test_a_limit_is_read_with_its_unit(monkeypatch, value, number):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", value)

    assert limits.ROW_BYTES.value() == number


def test_the_documentation_lists_every_limit():
    assert limits.to_markdown() in Path("docs/data.md").read_text()


TOO_LONG = "a" * 300
WHERE_PATHS_STAND = {
    "sources.0.path": {"sources": [{"name": "first", "path": f"{TOO_LONG}.jsonl"}]},
    "model.path": {"model": {"type": "directory", "path": TOO_LONG}},
    "template": {"template": f"{TOO_LONG}.jinja"},
    "load.adapters.0.path": {"load": {"adapters": [{"path": TOO_LONG}]}},
    "exams.0.path": {"exams": [{"name": "exam", "path": f"{TOO_LONG}.zip"}]},
    "registry.gate": {"registry": {"model_name": "tiny", "gate": f"{TOO_LONG}.yaml"}},
    "datasets": {"datasets": f"{TOO_LONG}.yaml", "sources": [{"dataset": "a"}]},
    "sources.1.path": {"sources": [{"name": "a", "hub": "a/b"}, {"name": "first", "path": "a\0b.jsonl"}]},
}


@pytest.mark.parametrize("key", WHERE_PATHS_STAND)
def test_a_path_that_no_file_system_holds_is_refused_with_its_line(tmp_path, key):
    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**{"exams": []} | WHERE_PATHS_STAND[key]))

    with pytest.raises(RecipeError, match=rf"run.yaml:\d+: {key}: "):
        load.load(path)


def test_a_recipe_is_asked_for_by_a_path_that_can_be():
    with pytest.raises(RecipeError, match="there is no such file"):
        load.load(Path(TOO_LONG))


def test_a_template_that_is_far_too_large_or_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("a" * (2 * MIB))
    with pytest.raises(SourceError, match=r"template: .*mine.jinja has 2,097,152 bytes, and the limit is 1 MiB"):
        selection.read_template(str(path))

    path.write_bytes(b"caf\xe9")
    with pytest.raises(SourceError, match="is not UTF-8 text: byte 3"):
        selection.read_template(str(path))
