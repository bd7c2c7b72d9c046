"""Formats as user functions: imported when rows are read, and hashed without being imported."""

import hashlib
import sys

import pytest

from tuneline.config.sections.sources import AlignConfig
from tuneline.config.validation import user_code as user_code_config
from tuneline.data.align import align
from tuneline.errors import DataError, RecipeError

SOURCE = """
ANSWER = 42

def read_row(record):
    return [
        {"role": "user", "content": record["q"]},
        {"role": "assistant", "content": record["a"]},
    ]

def read_text(record):
    return {"text": record["q"]}

def read_badly(record):
    return {"texts": record["q"]}
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Write a module into the working directory, with a name that is unique to the test."""
    name = f"own_{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"{name}.py").write_text(SOURCE)
    yield name
    sys.modules.pop(name, None)


def test_a_function_in_the_working_directory_is_a_format(module):
    content = align.align_record({"q": "x", "a": "y"}, f"{module}:read_row")

    assert [(turn["role"], turn["content"]) for turn in content["messages"]] == [("user", "x"), ("assistant", "y")]
    assert align.align_record({"q": "x"}, f"{module}:read_text")["text"] == "x"


def test_the_returned_value_is_validated_like_any_row(module):
    with pytest.raises(DataError, match=r"turn 2 \(assistant\) is empty"):
        align.align_record({"q": "x", "a": ""}, f"{module}:read_row")
    with pytest.raises(DataError, match=r"read_badly must return a list of messages, or .*, got \['texts'\]"):
        align.align_record({"q": "x"}, f"{module}:read_badly")


def test_an_exception_of_the_function_is_a_bad_row(module):
    with pytest.raises(DataError, match=f"{module}:read_row failed: KeyError: 'a'") as error:
        align.align_record({"q": "x"}, f"{module}:read_row")

    assert error.value.reason == f"{module}:read_row raised KeyError"


def test_a_changed_module_is_imported_again(module, tmp_path):
    align.align_record({"q": "x", "a": "y"}, f"{module}:read_row")
    before = user_code_config.format_hash(f"{module}:read_row")

    (tmp_path / f"{module}.py").write_text(SOURCE.replace('record["a"]', 'record["a"] + "!"'))

    assert user_code_config.format_hash(f"{module}:read_row") != before
    assert align.align_record({"q": "x", "a": "y"}, f"{module}:read_row")["messages"][1]["content"] == "y!"


def test_a_module_in_a_package_is_hashed_without_importing_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "rows.py").write_text(SOURCE)

    assert user_code_config.format_hash("own_package.rows:read_row") == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert "own_package" not in sys.modules


def test_a_built_in_format_has_no_hash():
    assert user_code_config.format_hash("alpaca") == user_code_config.format_hash("auto") == ""


@pytest.mark.parametrize("name", ["no_such_module:read", "own_rows:", ":read", "no.such.module:read", "json.no:read"])
def test_a_missing_module_is_an_error_before_any_row_is_read(name):
    with pytest.raises(RecipeError, match=r"module .* not found .* Set module:function"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=name))
    with pytest.raises(RecipeError, match="module .* not found"):
        user_code_config.format_hash(name)


def test_a_missing_function_is_refused_with_a_suggestion(module):
    with pytest.raises(RecipeError, match=r"has no function 'read_rows'\. Did you mean 'read_row'\?"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:read_rows"))


def test_an_object_that_is_not_a_function_is_refused(module):
    with pytest.raises(RecipeError, match="is not a function but an object of type int"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:ANSWER"))


def test_an_import_error_is_reported(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("import no_such_library")

    with pytest.raises(RecipeError, match=r"importing .* failed: ModuleNotFoundError: .*no_such_library"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:read_row"))
