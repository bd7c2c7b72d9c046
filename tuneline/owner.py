"""Records of the processes that use a state root and of what they started, for the cleanup after killed processes.

A process has a file `runs/<id>.json` with its host, its user and the runs that it has not ended, and a lock file that
it holds until it exits. A record whose lock is free belongs to a killed process. Records of other hosts and users are
ignored.
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

from tuneline import filesystem, state

FOLDER, WORK = "runs", "work"
WEEK_SECONDS = 7 * 24 * 3600
"""Age up to which a record of another host counts as a running process."""

logger = logging.getLogger(__name__)

_owners: dict[tuple[Path, int], "Owner"] = {}


@dataclass
class Owner:
    """The record of this process."""

    path: Path
    handle: int
    """File descriptor of the lock; never closed."""

    pid: int
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Kind -> ids of what was started and has not ended."""

    uses_scratch: bool = False
    """Whether it has used the scratch folder."""

    def add(self, kind: str, item_id: str) -> None:
        """Record that something was started."""
        self.notes.setdefault(kind, []).append(item_id)
        self._write()

    def drop(self, kind: str, item_id: str) -> None:
        """Record that it has ended."""
        self.notes[kind].remove(item_id)
        self._write()

    @contextmanager
    def registered(self, kind: str, item_id: str) -> Iterator[None]:
        """Record something for the duration of a block."""
        self.add(kind, item_id)
        try:
            yield
        finally:
            self.drop(kind, item_id)

    def _write(self) -> None:
        """Write the record; a failure is a warning, as it only affects the cleanup after a kill."""
        try:
            _write(self.path, self.notes)
        except OSError as error:
            logger.warning("The record of this process could not be written to %s: %s.", self.path, error)

    def _leave(self) -> None:
        if os.getpid() == self.pid and not any(self.notes.values()):
            _remove(self.path)


@dataclass(frozen=True)
class DeadOwner:
    """The record of a killed process of this host and user."""

    path: Path
    notes: dict[str, list[str]]

    def keep(self, notes: dict[str, list[str]]) -> None:
        """Save what is still to be cleaned up; remove the record if nothing is."""
        if not any(notes.values()):
            _remove(self.path)
            return
        _write(self.path, notes)


def current_owner() -> Owner:
    """Return the record of this process on the current state root."""
    key = (state.root(), os.getpid())
    if key not in _owners:
        with _lock():
            path = state.folder(FOLDER) / f"{uuid.uuid4().hex}.json"
            handle = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _owners[key] = Owner(path, handle, key[1])
            _owners[key]._write()
        atexit.register(_owners[key]._leave)
    return _owners[key]


def scratch_folder() -> Path:
    """Return the scratch folder, which is not cleared while this process runs."""
    current_owner().uses_scratch = True
    return state.folder(WORK)


def dead_owners() -> list[DeadOwner]:
    """Return the records of killed processes of this host and user."""
    return [
        DeadOwner(path, record["notes"])
        for path, record in _records()
        if record is not None and _is_local(record) and not is_locked(_lock_path(path))
    ]


def clear_scratch() -> int:
    """Remove leftovers of killed processes from the scratch folder, unless a running process uses it.

    Returns:
        Number of bytes freed.
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
    """Return whether a running process may use the scratch folder: this one, another one, or one of another host."""
    own_record = _owners.get((state.root(), os.getpid()))
    if own_record and own_record.uses_scratch:
        return True
    for path, record in _records():
        if own_record and path == own_record.path:
            continue
        is_foreign = record is not None and not _is_local(record)
        recent = time.time() - path.stat().st_mtime < WEEK_SECONDS
        if is_locked(_lock_path(path)) or (is_foreign and recent):
            return True
    return False


def _records() -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield the file and the content of every record; None as content of a truncated file."""
    for path in sorted((state.root() / FOLDER).glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:
            record = None
        complete = isinstance(record, dict) and isinstance(record.get("notes"), dict)
        yield path, record if complete else None


def _is_local(record: dict[str, Any]) -> bool:
    return (record.get("host"), record.get("user")) == (socket.gethostname(), os.getuid())


def is_locked(path: Path) -> bool:
    """Return whether a running process holds a lock."""
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
    record = {"host": socket.gethostname(), "user": os.getuid(), "pid": os.getpid(), "notes": notes}
    filesystem.write_atomic(path, json.dumps(record))


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock() -> Any:
    """Return the lock for new records and for clearing the scratch folder."""
    return state.lock("owners")


def _remove(path: Path) -> None:
    for file in (path, _lock_path(path)):
        with suppress(OSError):
            file.unlink(missing_ok=True)
