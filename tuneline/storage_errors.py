"""Detect full disks and locked databases in the errors of other libraries, and raise one-line errors instead."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuneline import state
from tuneline.errors import DiskFullError, TrackingError, TunelineError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_MESSAGES = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
    "os error 28",
    "errno 28",
)
"""Messages of SQLite, SQLAlchemy, pyarrow, safetensors and MLflow's server about a full disk, in lower case."""

AMBIGUOUS_MESSAGES = (
    "write failed",
    "pytorchstreamwriter failed",
    "enforce fail at inline_container",
    "disk i/o error",
)
"""Messages of torch and SQLite about a full disk or another failure; the free space, or a test write, decides."""

LOCKED_MESSAGES = ("database is locked", "database table is locked", "database schema is locked")
FULL_BYTES = 2**20
"""A disk with less free space is full; a test write of this size detects an exhausted quota."""

DATA_ERRORS = (TunelineError, ValueError, LookupError, TypeError)
"""Errors whose message may quote data; they indicate a full disk only through the error that caused them."""


@contextmanager
def translated() -> Iterator[None]:
    """Replace errors that mean a full disk or a locked database by one-line errors.

    Raises:
        DiskFullError: A disk is full.
        TrackingError: A database is locked.
    """
    try:
        yield
    except Exception as error:
        translation = translate(error)
        if translation is None or translation is error:
            raise
        raise translation from error


def translate(error: BaseException) -> TunelineError | None:
    """Return a one-line error for a full disk or a locked database; None for any other error."""
    if any(isinstance(cause, DiskFullError) for cause in _chain(error)):
        return error if isinstance(error, TunelineError) else DiskFullError(_full_sentence(error))
    if is_full(error):
        return DiskFullError(_full_sentence(error))
    if not isinstance(error, TunelineError) and any(
        message in _text(cause) for cause in _chain(error) for message in LOCKED_MESSAGES
    ):
        return TrackingError(LOCKED_ADVICE.format(error=_first_line(error)))
    return None


LOCKED_ADVICE = (
    "A database is locked by another process ({error}). It is not damaged: wait until the other command has "
    "written, then run the same command again; finished steps are cached."
)


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Return whether an error, or one of its causes, means that a disk is full; call it before deleting anything.

    Args:
        error: The error as it was caught.
        folder: Folder of the failed write; default: the state root.
    """
    return any(_means_full(cause, folder) for cause in _chain(error))


def _full_sentence(error: BaseException) -> str:
    errors = [cause for cause in _chain(error) if isinstance(cause, OSError) and cause.filename]
    paths = [str(cause.filename2 or cause.filename) for cause in errors]  # filename2 is the target of a copy
    folders = dict.fromkeys([*paths[-1:], str(state.root()), tempfile.gettempdir()])
    free = ", ".join(f"{_free(Path(folder)) / 1e9:.2f} GB at {folder}" for folder in folders)
    what = f": {paths[-1]} could not be written" if paths else ""
    prefix = f"{error} " if isinstance(error, TunelineError) else ""
    return (
        f"{prefix}A disk is full{what}. Free: {free}. Free some space, or move TUNELINE_HOME or TMPDIR to a larger "
        "disk; then run the same command again: finished steps are cached."
    )


def _means_full(error: BaseException, folder: Path | None) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return True
    text = "" if isinstance(error, DATA_ERRORS) else _text(error)
    if any(message in text for message in DISK_FULL_MESSAGES):
        return True
    return any(message in text for message in AMBIGUOUS_MESSAGES) and not _has_room(folder or state.root())


def _has_room(folder: Path) -> bool:
    """Check the free space, then write a megabyte, because free space does not show a quota."""
    if _free(folder) < FULL_BYTES:
        return False
    probe = folder / "room.new"
    try:
        with probe.open("wb") as file:
            file.write(bytes(FULL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in DISK_FULL_ERRNOS
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, newest first."""
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _text(error: BaseException) -> str:
    return str(error).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]


def _free(path: Path) -> int:
    """Return the free bytes of the disk of a path that may not exist."""
    existing = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))
    return shutil.disk_usage(existing).free
