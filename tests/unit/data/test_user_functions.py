"""A format of the user's own: a function beside the recipe, imported when rows are read and hashed without that."""

import hashlib
import sys

import pytest

from tuneline.config.sections.sources import AlignConfig
from tuneline.config.validation import user_code as found
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
    """Write a module into the working directory; its name is the test's, as Python imports a name once."""
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


def test_what_it_returns_is_checked_like_any_row(module):
    with pytest.raises(DataError, match=r"turn 2 \(assistant\) is empty"):
        align.align_record({"q": "x", "a": ""}, f"{module}:read_row")
    with pytest.raises(DataError, match=r"read_badly must return a list of messages, or .*, got \['texts'\]"):
        align.align_record({"q": "x"}, f"{module}:read_badly")


def test_what_it_raises_is_a_bad_row_that_says_so(module):
    with pytest.raises(DataError, match=f"{module}:read_row failed: KeyError: 'a'") as caught:
        align.align_record({"q": "x"}, f"{module}:read_row")

    assert caught.value.reason == f"{module}:read_row raised KeyError"


def test_a_changed_module_is_read_as_it_is_now(module, tmp_path):
    align.align_record({"q": "x", "a": "y"}, f"{module}:read_row")
    before = found.format_hash(f"{module}:read_row")

    (tmp_path / f"{module}.py").write_text(SOURCE.replace('record["a"]', 'record["a"] + "!"'))

    assert found.format_hash(f"{module}:read_row") != before
    assert align.align_record({"q": "x", "a": "y"}, f"{module}:read_row")["messages"][1]["content"] == "y!"


def test_a_module_in_a_package_is_hashed_without_importing_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "rows.py").write_text(SOURCE)

    assert found.format_hash("own_package.rows:read_row") == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert "own_package" not in sys.modules


def test_a_built_in_format_has_no_hash():
    assert found.format_hash("alpaca") == found.format_hash("auto") == ""


@pytest.mark.parametrize("name", ["no_such_module:read", "own_rows:", ":read", "no.such.module:read", "json.no:read"])
def test_a_missing_module_is_an_error_before_anything_is_read(name):
    with pytest.raises(RecipeError, match=r"module .* not found .* Set module:function"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=name))
    with pytest.raises(RecipeError, match="module .* not found"):
        found.format_hash(name)


def test_a_missing_function_is_named_with_the_nearest(module):
    with pytest.raises(RecipeError, match=r"has no function 'read_rows'\. Did you mean 'read_row'\?"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:read_rows"))


def test_what_is_no_function_is_refused(module):
    with pytest.raises(RecipeError, match="is no function but int"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:ANSWER"))


def test_a_module_that_fails_says_how(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("import no_such_library")

    with pytest.raises(RecipeError, match=r"importing .* failed: ModuleNotFoundError: .*no_such_library"):
        align.check_rows([("a.jsonl", 1, {})], AlignConfig(format=f"{module}:read_row"))
