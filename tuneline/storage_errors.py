"""Full disks and locked databases, recognized in the words of every library that writes, and told in one line."""

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
"""What SQLite, SQLAlchemy, pyarrow, safetensors and MLflow's server say of a full disk, in lower case."""

AMBIGUOUS_MESSAGES = (
    "write failed",
    "pytorchstreamwriter failed",
    "enforce fail at inline_container",
    "disk i/o error",
)
"""What torch and SQLite say of a full disk and of other failures: the free space, or a write, decides."""

LOCKED_MESSAGES = ("database is locked", "database table is locked", "database schema is locked")
FULL_BYTES = 2**20
"""Less free space than this is a full disk; so much is written to see whether a quota is used up."""

DATA_ERRORS = (TunelineError, ValueError, LookupError, TypeError)
"""Errors whose text may quote data; they mean a full disk only where they come from another error."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise the one-line error in place of one that means a full disk or a locked database.

    Raises:
        DiskFullError: A disk is full.
        TrackingError: A database is locked.
    """
    try:
        yield
    except Exception as error:
        told = translate(error)
        if told is None or told is error:
            raise
        raise told from error


def translate(error: BaseException) -> TunelineError | None:
    """Return the one-line error that tells what is wrong with a disk or a database; None where that is not the case."""
    if any(isinstance(each, DiskFullError) for each in _chain(error)):
        return error if isinstance(error, TunelineError) else DiskFullError(_full_sentence(error))
    if is_full(error):
        return DiskFullError(_full_sentence(error))
    if not isinstance(error, TunelineError) and any(
        word in _text(each) for each in _chain(error) for word in LOCKED_MESSAGES
    ):
        return TrackingError(LOCKED_ADVICE.format(error=_first_line(error)))
    return None


LOCKED_ADVICE = (
    "A database is locked by another process ({error}). Nothing is wrong with it: wait until the other command has "
    "written, then give the same command again; finished steps are cached."
)


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Tell whether an error, or one that it came from, means that a disk is full; call it before anything is deleted.

    Args:
        error: As it was caught.
        folder: Where something was written; default: the state root.
    """
    return any(_says_full(each, folder) for each in _chain(error))


def _full_sentence(error: BaseException) -> str:
    errors = [each for each in _chain(error) if isinstance(each, OSError) and each.filename]
    named = [str(each.filename2 or each.filename) for each in errors]  # the second is where a copy goes
    places = dict.fromkeys([*named[-1:], str(state.root()), tempfile.gettempdir()])
    free = ", ".join(f"{_free(Path(place)) / 1e9:.2f} GB at {place}" for place in places)
    what = f": {named[-1]} could not be written" if named else ""
    before = f"{error} " if isinstance(error, TunelineError) else ""
    return (
        f"{before}A disk is full{what}. Free: {free}. Free some space, or move TUNELINE_HOME or TMPDIR to a larger "
        "disk; then give the same command again: finished steps are cached."
    )


def _says_full(error: BaseException, folder: Path | None) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return True
    text = "" if isinstance(error, DATA_ERRORS) else _text(error)
    if any(word in text for word in DISK_FULL_MESSAGES):
        return True
    return any(word in text for word in AMBIGUOUS_MESSAGES) and not _has_room(folder or state.root())


def _has_room(folder: Path) -> bool:
    """Look at the free space, then write a megabyte, as free space alone does not show a quota."""
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
    """Yield an error and those that it came from, newest first."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def _text(error: BaseException) -> str:
    return str(error).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]


def _free(path: Path) -> int:
    """Return the free bytes where a path lies or would lie."""
    there = next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
    return shutil.disk_usage(there).free
