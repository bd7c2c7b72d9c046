"""Identity by content."""

import os

import pytest

from tuneline import identity

pytestmark = pytest.mark.usefixtures("home")


def test_a_file_is_hashed_again_when_its_bytes_changed_but_not_its_size(tmp_path):
    path = tmp_path / "x"
    path.write_text("aaaa")
    before = identity.file_entries(tmp_path, [path])
    path.write_text("aaab")

    assert identity.file_entries(tmp_path, [path]) != before


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("a")
    before = identity.file_entries(tmp_path, [path])
    monkeypatch.setattr(identity, "sha256_of", lambda path: pytest.fail("read again"))

    assert identity.file_entries(tmp_path, [path]) == before


def test_a_tree_is_known_by_names_and_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    os.utime(tmp_path / "a" / "file", (1, 1))

    assert identity.tree_hash(tmp_path / "a") == identity.tree_hash(tmp_path / "b")
    (tmp_path / "b" / "file").rename(tmp_path / "b" / "other")
    assert identity.tree_hash(tmp_path / "a") != identity.tree_hash(tmp_path / "b")
