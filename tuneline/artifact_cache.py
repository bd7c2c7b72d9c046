"""Local copies of remote artifacts, downloaded once per content and shared by all processes.

The least recently used copies are removed when all together exceed `TUNELINE_DOWNLOADS_GB` (default 50). A copy in use
is never removed: each process that uses it holds a shared lock until it exits.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import Timeout

from tuneline import filesystem, state
from tuneline.errors import ArtifactError, RecipeError
from tuneline.identity import digest

SIZE_VARIABLE = "TUNELINE_DOWNLOADS_GB"
DEFAULT_GB = 50.0
WAIT_SECONDS = 24 * 3600
"""Time to wait for another process that downloads the same copy."""

logger = logging.getLogger(__name__)
_in_use: dict[Path, IO[str]] = {}
"""Lock files that this process holds until it exits."""


def cached_folder(key: str, fetch: Callable[[Path], None], check: Callable[[Path], object]) -> Path:
    """Return the local copy for a key; it is downloaded if missing or damaged.

    Args:
        key: Hash of the content.
        fetch: Writes the files to an empty folder.
        check: Raises ArtifactError if the files of a folder are not as stored.

    Raises:
        ArtifactError: The downloaded files differ from the stored ones.
        RecipeError: `TUNELINE_DOWNLOADS_GB` is not a number.
    """
    limit = _limit_bytes()
    target = state.folder("downloads") / key[:32]
    with state.lock(_lock_name(target), WAIT_SECONDS):
        _use(target)
        if target.is_dir() and not _is_intact(target, check):
            shutil.rmtree(target)
        if not target.is_dir():
            _fetch(target, fetch, check)
    _mark(target).touch()
    _evict(target.parent, limit)
    return target


def artifact_key(checksums: str) -> str:
    """Return the cache key of an artifact with these checksums."""
    return digest(["artifact", checksums])


def _limit_bytes() -> float:
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not size >= 0:
        raise RecipeError(f"{SIZE_VARIABLE}={text!r} is not a size. Set a number of gigabytes, 0 or more.")
    return size * 1e9


def _fetch(target: Path, fetch: Callable[[Path], None], check: Callable[[Path], object]) -> None:
    """Download to an unfinished folder, check it, and rename it to the target."""
    with filesystem.atomic_folder(target) as unfinished:
        fetch(unfinished)
        check(unfinished)


def _is_intact(target: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(target)
    except ArtifactError as error:
        logger.warning("%s This local copy of a remote artifact is downloaded again.", error)
        return False
    return True


def _use(target: Path) -> None:
    """Hold the lock of the copy until this process exits."""
    mark = _mark(target)
    if mark not in _in_use:
        file = mark.open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[mark] = file


def _evict(base: Path, limit: float) -> None:
    """Remove abandoned unfinished copies and, beyond the limit, the least recently used copies."""
    for unfinished in base.glob(f"*{filesystem.UNFINISHED}"):
        _remove_unfinished(unfinished)
    folders = [path for path in base.iterdir() if path.is_dir() and path.suffix != filesystem.UNFINISHED]
    copies = [path for path in folders if _mark(path).exists()]
    sizes = {path: _num_bytes(path) for path in copies}
    excess = sum(sizes.values()) - limit
    for path in sorted(copies, key=lambda path: _mark(path).stat().st_mtime_ns):
        if excess <= 0:
            return
        if _remove(path):
            excess -= sizes[path]


def _remove(path: Path) -> bool:
    """Remove a copy unless a process uses or downloads it."""
    try:
        with state.lock(_lock_name(path), 0), _mark(path).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    except (Timeout, BlockingIOError):
        return False
    return True


def _remove_unfinished(unfinished: Path) -> None:
    try:
        with state.lock(_lock_name(unfinished.with_suffix("")), 0):
            shutil.rmtree(unfinished, ignore_errors=True)
    except Timeout:
        return


def _num_bytes(path: Path) -> int:
    sizes = []
    for file in path.rglob("*"):
        try:
            sizes.append(file.lstat().st_size)
        except FileNotFoundError:  # another process removes this copy
            continue
    return sum(sizes)


def _mark(target: Path) -> Path:
    """Return the lock file of a copy; its modification time is the time of the last use."""
    return target.with_suffix(".used")


def _lock_name(target: Path) -> str:
    return f"download-{target.name}"
