"""Atomic writes, and links that fall back to copies."""

import os

import pytest

from tuneline import filesystem


def test_a_failed_text_write_leaves_the_previous_content(tmp_path):
    path = tmp_path / "cache.json"
    filesystem.write_atomic(path, "before")

    with pytest.raises(UnicodeEncodeError):
        filesystem.write_atomic(path, "after \ud800")

    assert path.read_text() == "before"


def test_missing_parent_folders_are_created_and_nothing_unfinished_remains(tmp_path):
    path = tmp_path / "a" / "b" / "cache.json"

    filesystem.write_atomic(path, "é", sync=False)

    assert path.read_bytes() == "é".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_previous_file_and_the_unfinished_one(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"before")

    def write_half():
        with filesystem.atomic_path(path) as unfinished:
            unfinished.write_bytes(b"aft")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_half()

    assert path.read_bytes() == b"before"
    assert (tmp_path / "weights.bin.new").read_bytes() == b"aft", (
        "the unfinished file still occupies the disk when the error is reported"
    )

    with filesystem.atomic_path(path) as unfinished:
        unfinished.write_bytes(b"after")

    assert path.read_bytes() == b"after"
    assert not unfinished.exists()


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_flushed_before_it_is_renamed_unless_sync_is_false(tmp_path, monkeypatch, sync):
    path, existed_at_fsync = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda handle: existed_at_fsync.append(path.exists()))

    filesystem.write_atomic(path, "text", sync=sync)

    assert existed_at_fsync == ([False] if sync else [])


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "copy"

    def write_half():
        with filesystem.atomic_folder(path) as unfinished:
            (unfinished / "a").write_text("1")
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        write_half()

    assert list(tmp_path.iterdir()) == []

    with filesystem.atomic_folder(path) as unfinished:
        (unfinished / "a").write_text("1")
        assert not path.exists()

    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["copy", "copy/a"]


def test_leftovers_of_a_killed_process_are_not_part_of_a_folder(tmp_path):
    (tmp_path / "copy.new").mkdir()
    (tmp_path / "copy.new" / "old").touch()

    with filesystem.atomic_folder(tmp_path / "copy") as unfinished:
        (unfinished / "new").touch()

    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["new"]


def test_a_link_shares_the_file_behind_a_symbolic_link(tmp_path):
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "model").symlink_to("blob")

    filesystem.link_or_copy(tmp_path / "model", tmp_path / "linked")

    assert not (tmp_path / "linked").is_symlink()
    assert (tmp_path / "linked").samefile(tmp_path / "blob")


def test_a_file_is_copied_if_hard_links_fail(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("Invalid cross-device link")

    (tmp_path / "model").write_text("weights")
    monkeypatch.setattr(os, "link", refuse)

    filesystem.link_or_copy(str(tmp_path / "model"), str(tmp_path / "copy"))

    assert (tmp_path / "copy").read_text() == "weights"
    assert not (tmp_path / "copy").samefile(tmp_path / "model")
