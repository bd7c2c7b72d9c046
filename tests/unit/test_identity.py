"""Content hashes of files and folders, and their cache."""

import json
import os

import pytest

from tuneline import identity, state

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


def test_a_tree_hash_depends_on_names_and_bytes_only(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    os.utime(tmp_path / "a" / "file", (1, 1))

    assert identity.tree_hash(tmp_path / "a") == identity.tree_hash(tmp_path / "b")
    (tmp_path / "b" / "file").rename(tmp_path / "b" / "other")
    assert identity.tree_hash(tmp_path / "a") != identity.tree_hash(tmp_path / "b")


@pytest.mark.parametrize("content", ["", '{"/x/y": [1, 2', "[]", "3", '{"%s": 3}', '{"%s": []}', "\x00\x00"])
def test_a_truncated_hash_cache_is_ignored(tmp_path, home, content):
    path = tmp_path / "x"
    path.write_text("a")
    before = identity.file_entries(tmp_path, [path])
    (home / "hashes.json").write_text(content.replace("%s", str(path)))

    assert identity.file_entries(tmp_path, [path]) == before
    assert json.loads((home / "hashes.json").read_text())[str(path)][-1] == before[0].sha256


def test_full_reads_all_bytes_despite_the_cache(tmp_path, monkeypatch):
    """Bytes that a failing disk changes keep their size and modification time."""
    path = tmp_path / "x"
    path.write_text("a")
    identity.file_entries(tmp_path, [path])
    monkeypatch.setattr(identity, "sha256_of", lambda path: "other")

    assert identity.file_entries(tmp_path, [path], full=True)[0].sha256 == "other"
    assert identity.file_entries(tmp_path, [path])[0].sha256 == "other", "the newer hash replaces the cached one"


def test_the_lock_is_free_while_a_file_is_hashed(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("a")

    def hash_while_another_process_locks(path):
        state.lock("hashes", timeout_seconds=0).acquire().lock.release()
        return "0" * 64

    monkeypatch.setattr(identity, "sha256_of", hash_while_another_process_locks)

    assert identity.file_entries(tmp_path, [path])
