"""Atomic file writes, and hard links with a copy as the fallback."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".new"
"""Suffix of a file or folder that is being written."""


def write_atomic(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a text file completely or not at all; hold the lock of the file if several processes write it.

    Args:
        path: File to create or replace; missing parent folders are created.
        text: Content, written as UTF-8.
        sync: Flush to the disk before the file gets its name, so that it survives a power cut.
    """
    with atomic_path(path, sync=sync) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` when the block ends without an error.

    After an error `path` is unchanged. The unfinished file stays, because `storage_errors.is_full` needs the disk as it
    was when the write failed; the next write overwrites it.

    Args:
        path: File to create or replace; missing parent folders are created.
        sync: Flush to the disk before the file gets its name, so that it survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    yield unfinished
    if sync:
        fsync(unfinished)
    unfinished.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to `path` when the block ends without an error.

    Hold a lock if several processes write the same folder. After an error the unfinished folder is removed.

    Args:
        path: Folder to create; it must not exist.
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Create a hard link to a file; copy the file if the file system does not support the link.

    Usable as the `copy_function` of `shutil.copytree`.
    """
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
