"""Cache keys of steps cover the library files that they use."""

import shutil

import pytest

from steps import caching
from steps.caching import library_source_hash, source_files


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of three modules, one of which imports another inside a function, a template and a table."""
    root = tmp_path / "tuneline"
    root.mkdir()
    (root / "outer.py").write_text("TABLE = 'table.yaml'\ndef run():\n    from tuneline import inner\n")
    (root / "inner.py").write_text("")
    (root / "other.py").write_text("")
    (root / "chat.jinja").write_text("")
    (root / "table.yaml").write_text("")
    monkeypatch.setattr(caching, "LIBRARY", root)
    return root


def test_imports_are_followed_through_the_library():
    packing_names = {file.relative_to(caching.LIBRARY).as_posix() for file in source_files("data.tokenization.packing")}
    aligner_names = {file.relative_to(caching.LIBRARY).as_posix() for file in source_files("data.align.align")}

    assert packing_names == {"data/tokenization/packing.py"}
    assert {"data/align/formats/alpaca.py", "data/align/formats/base.py", "errors.py", "registry.py"} <= aligner_names


@pytest.mark.parametrize("name", ["outer.py", "inner.py", "chat.jinja", "table.yaml"])
def test_a_change_in_any_file_that_the_step_uses_changes_the_hash(library, name):
    before = library_source_hash("outer")

    (library / name).write_text("# changed, still naming table.yaml\nfrom tuneline import inner\n")

    assert library_source_hash("outer") != before


def test_a_change_in_an_unused_file_does_not_change_the_hash(library):
    before = library_source_hash("outer")

    (library / "other.py").write_text("# changed")

    assert library_source_hash("outer") == before


def test_the_hash_does_not_depend_on_the_location_of_the_library(library, tmp_path, monkeypatch):
    before = library_source_hash("outer")

    copy = shutil.copytree(library, tmp_path / "site-packages" / "tuneline")
    monkeypatch.setattr(caching, "LIBRARY", copy)

    assert library_source_hash("outer") == before


def test_the_hash_input_includes_library_versions():
    assert "jinja2=" in library_source_hash("errors", libraries=("jinja2",))
    assert "no-such-thing=absent" in library_source_hash("errors", libraries=("no-such-thing",))


def test_a_module_that_does_not_exist_is_an_error():
    with pytest.raises(LookupError, match=r"no module 'tuneline.data.allign'"):
        library_source_hash("data.allign")
