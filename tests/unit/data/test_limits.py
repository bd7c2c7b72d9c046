"""Input that would exhaust memory or never end is refused with its line: long rows, compressed files, pipes."""

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
def time_limit(seconds: int):
    """Fail a test that hangs, also while it waits for a pipe."""

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


def read_error(path: Path) -> str:
    with time_limit(20), pytest.raises(TunelineError) as error:
        num_rows(path)
    return str(error.value)


ROW = {"text": "a"}
LONG_ROW = {"text": "a" * (4 * MIB)}


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
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
def test_a_row_that_is_too_long_is_refused_with_its_line(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = write_rows(tmp_path / f"a.{kind}", [ROW, ROW, LONG_ROW, ROW])
    line = {"json": 1, "csv": 4}.get(kind, 3)

    message = read_error(path)

    assert message.startswith(f"{path}:{line}: the row is longer than 2 MiB.")
    assert "TUNELINE_MAX_ROW_BYTES" in message


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "csv", "parquet"])
def test_rows_below_the_limit_are_read(tmp_path, monkeypatch, kind):
    rows = [ROW, LONG_ROW, ROW, LONG_ROW, LONG_ROW]
    path = write_rows(tmp_path / f"a.{kind}", rows)
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "6M")

    assert num_rows(path) == len(rows)


def test_a_csv_record_of_many_long_fields_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n" + ",".join(['"' + "line\n" * 100_000 + '"'] * 8))

    assert read_error(path).startswith(f"{path}:3: the row is longer than 2 MiB.")


def test_a_small_compressed_file_with_a_huge_line_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(80):
            file.write(b"a" * MIB)

    assert path.stat().st_size < MIB
    assert read_error(path).startswith(f"{path}:2: the row is longer than 64 MiB.")


def test_a_small_compressed_file_with_too_many_lines_is_refused(tmp_path, monkeypatch):
    num_lines = 300_000
    monkeypatch.setenv("TUNELINE_MIN_UNPACKED_BYTES", "2M")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * num_lines))

    message = read_error(path)

    assert "decompress to more than 2 MiB and more than 200 times its size" in message
    monkeypatch.setenv("TUNELINE_MAX_UNPACKED_RATIO", "2000")
    assert num_rows(path) == num_lines


def test_a_parquet_file_that_decompresses_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    rows = pa.table({"text": [f"{i:08}" + "a" * 100_000 for i in range(100)]})
    parquet.write_table(rows, path, compression="zstd", use_dictionary=False)
    assert num_rows(path) == 100

    monkeypatch.setenv("TUNELINE_MIN_UNPACKED_BYTES", "1M")

    assert "times its size" in read_error(path)


def test_invalid_bytes_in_a_list_on_one_long_line_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_ROW_BYTES", "2M")
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b", ".join([json.dumps(ROW).encode()] * 200_000) + b', {"text": "\xe9"}]')

    assert f"{path}:1: the file cannot be read" in read_error(path)


KINDS = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to(path.with_name("gone")),
}
WORDS = {"pipe": "named pipe", "device": "device", "loop": "a link to itself", "nowhere": "a link to a missing file"}


def write_project(folder: Path, **changes) -> Path:
    for name in ("first", "second"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / name).write_text("{}")
    return tiny.write_config(folder / "run.yaml", tiny.recipe(exams=[], **changes))


def recipe_error(path: Path) -> str:
    with time_limit(20), pytest.raises(TunelineError) as error:
        existence.check(load.load(path).recipe)
    return str(error.value)


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
def test_a_path_that_is_not_a_regular_file_is_never_opened(tmp_path, kind, name, changes):
    recipe = write_project(tmp_path)
    if changes:
        tiny.write_config(recipe, tiny.recipe(**{"exams": []} | changes))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    if name == "model/notes.txt" and kind in ("loop", "nowhere"):
        return  # an unused broken link in a model folder is ignored

    message = recipe_error(recipe)

    assert WORDS[kind] in message
    assert path.name in message or kind == "device"


def test_a_pipe_among_the_files_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "b.jsonl")

    with time_limit(20), pytest.raises(SourceError, match=r"b.jsonl is a named pipe"):
        data_files.find(tmp_path)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "again").symlink_to(tmp_path)

    with time_limit(20):
        assert data_files.find(tmp_path).paths == [tmp_path / "a.jsonl"]


def test_a_pipe_in_place_of_a_file_is_neither_read_nor_hashed(tmp_path):
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)

    assert "named pipe" in read_error(path)
    with time_limit(20), pytest.raises(SourceError, match="named pipe"):
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
        (ALIASES, "more than 100,000 values with aliases expanded"),
        (MERGES, "more than 100,000 values with aliases expanded"),
        ("a: &a\n  b: *a\n", "is inside the value that it refers to"),
        ("a: &a [*a]\n", "is inside the value that it refers to"),
        ("a: &a {<<: *a}\n", "is inside the value that it refers to"),
        ("a: " + "[" * 3000 + "]" * 3000 + "\n", "nested more than 64 levels deep"),
        ("a: " + "{a: " * 3000 + "\n", "nested more than 64 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(900)), "nested more than 64 levels deep"),
        ("a: *" + "b" * 10 + "\n", "undefined alias"),
    ],
    ids=["aliases", "merges", "self", "self list", "self merge", "brackets", "braces", "blocks", "undefined"],
)
def test_yaml_with_exponential_aliases_or_deep_nesting_is_refused_with_its_line(tmp_path, text, what):
    path = write_project(tmp_path)
    head = path.read_text()
    path.write_text(head + text)

    with time_limit(60), pytest.raises(RecipeError) as error:
        load.load(path)

    file, line, message = str(error.value).split(":", 2)
    assert (file, what in message) == (str(path), True)
    assert int(line) > head.count("\n")


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"a":\n' + '{"b":' * 3000 + "1" + "}" * 3001])
def test_deeply_nested_json_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "dataset_info.json"
    path.write_text(text)
    location = f"dataset_info.json:{1 + text.count(chr(10))}: "

    with time_limit(20), pytest.raises(RecipeError, match=f"{location}values are nested"):
        dataset_registry.read(path)


def test_brackets_inside_strings_are_not_nesting(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"a": {"file_name": "[" * 100 + '"{' * 50 + ".json"}}))

    assert list(dataset_registry.read(path).entries) == ["a"]


def test_ordinary_aliases_are_supported(tmp_path):
    path = write_project(tmp_path)
    path.write_text(path.read_text() + "tags: &tags [a, b]\nextra: {pipeline: sft_pipeline}\nsettings: {mine: *tags}\n")

    assert load.load(path).content["settings"] == {"mine": ["a", "b"]}


def test_a_huge_recipe_file_is_not_read(tmp_path):
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(20 * MIB)

    with time_limit(20), pytest.raises(RecipeError, match="the maximum is 2 MiB"):
        load.load(path)


@pytest.mark.parametrize(
    "number",
    ["0x" + "f" * 9000, "9" * 5000, "1" + ":1" * 300_000, "1" + ":1" * 3000 + ".5", "9" * 5000 + ".5"],
    ids=["hex", "digits", "base 60", "fraction to the base 60", "fraction"],
)
def test_a_number_of_thousands_of_digits_is_refused_with_its_line(tmp_path, number):
    path = write_project(tmp_path)
    path.write_text(path.read_text().replace("max_steps: 2", f"max_steps: {number}"))

    with time_limit(20), pytest.raises(RecipeError, match=r"run.yaml:\d+: a number has [\d,]+ characters"):
        load.load(path)


def test_a_number_of_thousands_of_digits_in_json_is_refused(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"a": {"file_name": "a.json", "num_samples": ' + "9" * 5000 + "}}")

    with pytest.raises(RecipeError, match=r"dataset_info.json: not valid JSON: Exceeds the limit"):
        dataset_registry.read(path)


def test_an_unterminated_string_in_json_is_found_quickly(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"a": "' + '\\"' * 500_000)

    with time_limit(20), pytest.raises(RecipeError, match=r"dataset_info.json:1: not valid JSON: unterminated string"):
        dataset_registry.read(path)


MANY = 20_000


def test_rows_with_very_many_columns_are_read_quickly(tmp_path):
    names = [f"k{i}" for i in range(MANY)]
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps(dict.fromkeys(names, 1)) + "\n")
    table = tmp_path / "a.csv"
    table.write_text(f"{','.join(names)}\n{','.join('1' * MANY)}\n")
    columns = tmp_path / "a.parquet"
    parquet.write_table(pa.table({name: [1] for name in names[: MANY // 5]}), columns)

    with time_limit(20):
        assert [num_rows(path) for path in (lines, table, columns)] == [1, 1, 1]


def test_a_duplicate_key_among_very_many_is_found_quickly(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{" + ",".join(f'"k{i}":1' for i in range(MANY)) + ',"k7":1}\n')

    assert "duplicate key 'k7'" in read_error(path)


@pytest.mark.parametrize("value", ["", "many", "-1", "0", "1.5", "1T", "9" * 30])
def test_a_limit_that_is_not_a_number_is_refused(monkeypatch, value):
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
RECIPES_WITH_PATHS = {
    "sources.0.path": {"sources": [{"name": "first", "path": f"{TOO_LONG}.jsonl"}]},
    "model.path": {"model": {"type": "directory", "path": TOO_LONG}},
    "template": {"template": f"{TOO_LONG}.jinja"},
    "load.adapters.0.path": {"load": {"adapters": [{"path": TOO_LONG}]}},
    "exams.0.path": {"exams": [{"name": "exam", "path": f"{TOO_LONG}.zip"}]},
    "registry.gate": {"registry": {"model_name": "tiny", "gate": f"{TOO_LONG}.yaml"}},
    "datasets": {"datasets": f"{TOO_LONG}.yaml", "sources": [{"dataset": "a"}]},
    "sources.1.path": {"sources": [{"name": "a", "hub": "a/b"}, {"name": "first", "path": "a\0b.jsonl"}]},
}


@pytest.mark.parametrize("key", RECIPES_WITH_PATHS)
def test_a_path_that_is_invalid_for_the_file_system_is_refused_with_its_line(tmp_path, key):
    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**{"exams": []} | RECIPES_WITH_PATHS[key]))

    with pytest.raises(RecipeError, match=rf"run.yaml:\d+: {key}: "):
        load.load(path)


def test_an_invalid_path_of_a_recipe_is_refused():
    with pytest.raises(RecipeError, match="file not found"):
        load.load(Path(TOO_LONG))


def test_a_template_that_is_huge_or_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("a" * (2 * MIB))
    with pytest.raises(SourceError, match=r"template: .*mine.jinja has 2,097,152 bytes, and the limit is 1 MiB"):
        selection.read_template(str(path))

    path.write_bytes(b"caf\xe9")
    with pytest.raises(SourceError, match="is not UTF-8 text: byte 3"):
        selection.read_template(str(path))
