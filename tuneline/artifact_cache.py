"""Copies of remote artifacts under the state root: fetched once for the same content, shared by all processes.

The least recently used copies are removed where all together exceed `TUNELINE_DOWNLOADS_GB` (default 50); one that a
process uses stays, whatever the limit: each user holds a shared lock on it until it ends.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import Timeout

from tuneline import state
from tuneline.errors import ArtifactError, RecipeError
from tuneline.identity import digest

SIZE_VARIABLE = "TUNELINE_DOWNLOADS_GB"
DEFAULT_GB = 50.0
WAIT_SECONDS = 24 * 3600
"""How long to wait for another process that fetches the same copy."""

logger = logging.getLogger(__name__)
_in_use: dict[Path, IO[str]] = {}
"""Lock files that this process holds until it ends."""


def cached_folder(key: str, fetch: Callable[[Path], None], check: Callable[[Path], object]) -> Path:
    """Return the copy that a key names; it is fetched where it is missing or damaged.

    Args:
        key: Hash of the content.
        fetch: Writes the files into an empty folder.
        check: Raises ArtifactError where a folder does not hold what was fetched.

    Raises:
        ArtifactError: What was fetched is not what was stored.
        RecipeError: `TUNELINE_DOWNLOADS_GB` is not a number.
    """
    limit = _limit_bytes()
    target = state.folder("downloads") / key[:32]
    with state.lock(_lock_name(target), WAIT_SECONDS):
        _use(target)
        if target.is_dir() and not _is_whole(target, check):
            shutil.rmtree(target)
        if not target.is_dir():
            _fetch(target, fetch, check)
    _mark(target).touch()
    _make_room(target.parent, limit)
    return target


def artifact_key(checksums: str) -> str:
    """Return the key of an artifact with these checksums."""
    return digest(["artifact", checksums])


def _limit_bytes() -> float:
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not size >= 0:
        raise RecipeError(f"{SIZE_VARIABLE}={text!r} is not a size. Give a number of gigabytes, 0 or more.")
    return size * 1e9


def _fetch(target: Path, fetch: Callable[[Path], None], check: Callable[[Path], object]) -> None:
    """Fetch beside the target and move the copy there as a whole."""
    fresh = target.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        fetch(fresh)
        check(fresh)
        fresh.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_whole(target: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(target)
    except ArtifactError as error:
        logger.warning("%s This is a local copy of a remote artifact, which is downloaded again.", error)
        return False
    return True


def _use(target: Path) -> None:
    """Hold the copy until this process ends."""
    mark = _mark(target)
    if mark not in _in_use:
        file = mark.open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[mark] = file


def _make_room(base: Path, limit: float) -> None:
    """Remove unfinished copies that nobody writes and, beyond the limit, those that were used longest ago."""
    for fresh in base.glob("*.new"):
        _remove_unfinished(fresh)
    copies = [path for path in base.iterdir() if path.is_dir() and path.suffix != ".new" and _mark(path).exists()]
    sizes = {path: _num_bytes(path) for path in copies}
    excess = sum(sizes.values()) - limit
    for path in sorted(copies, key=lambda path: _mark(path).stat().st_mtime_ns):
        if excess <= 0:
            return
        if _remove(path):
            excess -= sizes[path]


def _remove(path: Path) -> bool:
    """Remove a copy unless a process uses or fetches it."""
    try:
        with state.lock(_lock_name(path), 0), _mark(path).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    except (Timeout, BlockingIOError):
        return False
    return True


def _remove_unfinished(fresh: Path) -> None:
    try:
        with state.lock(_lock_name(fresh.with_suffix("")), 0):
            shutil.rmtree(fresh, ignore_errors=True)
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
    """Return the file beside a copy whose lock says that it is in use, and whose time says when it was last."""
    return target.with_suffix(".used")


def _lock_name(target: Path) -> str:
    return f"download-{target.name}"
