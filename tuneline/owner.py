"""Which processes work on a state root, and what they have begun: so that what a killed one left is found.

Each process that needs it has a file `runs/<id>.json` with its host and user and the runs that it has not ended yet,
and beside it a lock that the kernel holds as long as the process lives. A file whose lock is free is of a process that
was killed; files of other hosts and users are left to them.
"""

import atexit
import fcntl
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline import state

FOLDER, WORK = "runs", "work"
WEEK_SECONDS = 7 * 24 * 3600
"""A process of another host counts as living for so long, where nothing tells that it does."""

logger = logging.getLogger(__name__)

_mine: dict[tuple[Path, int], "Owner"] = {}


@dataclass
class Owner:
    """This process, as an owner of what it begins."""

    path: Path
    handle: int
    """Of the lock; never closed."""

    pid: int
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Kind of thing -> ids of what was begun and has not ended."""

    works: bool = False
    """It has used the scratch folder."""

    def add(self, kind: str, thing: str) -> None:
        """Note that something was begun."""
        self.notes.setdefault(kind, []).append(thing)
        self._write()

    def drop(self, kind: str, thing: str) -> None:
        """Note that it has ended."""
        self.notes[kind].remove(thing)
        self._write()

    @contextmanager
    def registered(self, kind: str, thing: str) -> Iterator[None]:
        """Own something for the time of a block."""
        self.add(kind, thing)
        try:
            yield
        finally:
            self.drop(kind, thing)

    def _write(self) -> None:
        """A run goes on where this fails: the worst is that a kill is not noticed, or noticed in vain."""
        try:
            _write(self.path, self.notes)
        except OSError as error:
            logger.warning("What this process works on could not be noted in %s: %s.", self.path, error)

    def _leave(self) -> None:
        if os.getpid() == self.pid and not any(self.notes.values()):
            _remove(self.path)


@dataclass(frozen=True)
class DeadOwner:
    """A process of this host and user that is gone, and what it had begun."""

    path: Path
    notes: dict[str, list[str]]

    def keep(self, notes: dict[str, list[str]]) -> None:
        """Note what is still to be closed; drop the file where nothing is."""
        if not any(notes.values()):
            _remove(self.path)
            return
        _write(self.path, notes)


def current_owner() -> Owner:
    """Return this process as an owner on the current state root."""
    key = (state.root(), os.getpid())
    if key not in _mine:
        with _lock():
            path = state.folder(FOLDER) / f"{uuid.uuid4().hex}.json"
            handle = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mine[key] = Owner(path, handle, key[1])
            _mine[key]._write()
        atexit.register(_mine[key]._leave)
    return _mine[key]


def scratch_folder() -> Path:
    """Return the scratch folder; while this process lives, nobody clears it."""
    current_owner().works = True
    return state.folder(WORK)


def dead_owners() -> list[DeadOwner]:
    """Return the processes of this host and user that are gone without having ended what they began."""
    found = []
    for path, about in _all():
        if about is not None and _is_ours(about) and not is_locked(_lock_of(path)):
            found.append(DeadOwner(path, about["notes"]))
    return found


def clear_scratch() -> int:
    """Remove what killed processes left in the scratch folder, where no living one uses it.

    Returns:
        Bytes that were freed.
    """
    folder = state.root() / WORK
    if not folder.is_dir() or not any(folder.iterdir()):
        return 0
    with _lock():
        if _is_used():
            return 0
        freed = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return freed


def _is_used() -> bool:
    """Tell whether a living process may use the scratch folder: this one, another one, or one of another host."""
    mine = _mine.get((state.root(), os.getpid()))
    if mine and mine.works:
        return True
    for path, about in _all():
        if mine and path == mine.path:
            continue
        foreign = about is not None and not _is_ours(about)
        young = time.time() - path.stat().st_mtime < WEEK_SECONDS
        if is_locked(_lock_of(path)) or (foreign and young):
            return True
    return False


def _all() -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield every owner's file with what it says; None where it was torn."""
    for path in sorted((state.root() / FOLDER).glob("*.json")):
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:
            found = None
        whole = isinstance(found, dict) and isinstance(found.get("notes"), dict)
        yield path, found if whole else None


def _is_ours(about: dict[str, Any]) -> bool:
    return (about.get("host"), about.get("user")) == (socket.gethostname(), os.getuid())


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds a lock."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _write(path: Path, notes: dict[str, list[str]]) -> None:
    about = {"host": socket.gethostname(), "user": os.getuid(), "pid": os.getpid(), "notes": notes}
    state.write_whole(path, json.dumps(about))


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock() -> Any:
    """Return the lock under which owners come, and the scratch folder is cleared."""
    return state.lock("owners")


def _remove(path: Path) -> None:
    for each in (path, _lock_of(path)):
        with suppress(OSError):
            each.unlink(missing_ok=True)
