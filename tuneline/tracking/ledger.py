"""The ledger of promotions: one line per move of an alias, only ever appended, each line holding the hash of the last.

Guarantee. Changing, inserting or removing a line breaks the chain behind it, which `verify` finds by reading every
line. Beside the ledger lies a marker: number and hash of the last line, and the file's size, times and inode at the
moment when the chain was last known to be whole. An append trusts the lines before it without reading them only if the
file still has exactly these; otherwise it reads and checks the whole chain, and that the line of the marker is still in
its place, and refuses to write where either fails. So an edit through the file system (which sets the inode's change
time) stops the next append, and appending costs the same whatever the number of lines. What the marker cannot tell, an
edit that leaves size, times and inode as they were (past the file system, or within the same tick of its clock as the
last append), is left to `verify`; somebody who rewrites both ledger and marker is found by the hash that the registry
keeps (`promotion.verify`).

A line is written by one call and is whole only with its newline. What a stopped process or a full disk left of a last
line is moved into a file of its own (`ledger.torn-*`), with a warning.
"""

import contextlib
import getpass
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneline import state
from tuneline.errors import TrackingError
from tuneline.identity import digest

GENESIS_HASH = "0" * 64
MARKER = "ledger.marker.json"

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
Stamp = tuple[int, int, int, int]
"""Of a file: size, time of modification and time of change in ns, inode."""


class _Line(BaseModel):
    """What every line must hold; it may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)

    when: str
    who: str
    model: str
    alias: str
    before: str | None = Field(alias="from")
    after: str | None = Field(alias="to")
    why: str
    last: str
    hash: str


class _Marker(BaseModel):
    """A chain that was whole: its file, its last line, and where it says that the aliases stand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stamp: Stamp | None = None
    """None without a file."""

    num_lines: int = 0
    last: str = GENESIS_HASH
    positions: dict[str, dict[str, str | None]] = {}
    """Model -> alias -> version."""


def path() -> Path:
    """Return where the ledger lies."""
    return state.root() / "ledger.jsonl"


def append(model: str, alias: str, before: str | None, after: str | None, why: str, **more: Any) -> Entry:
    """Write down a move; call it while holding the lock of promotions.

    Args:
        model: Registered model.
        alias: Which alias moved.
        before: Version that it pointed at, if any.
        after: Version that it points at now, if any.
        why: In one sentence.
        more: Anything else worth keeping, JSON-able.

    Raises:
        TrackingError: The ledger was changed, or the line cannot be written; nothing of it is left then.
    """
    marker = _checked()
    entry = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        "model": model,
        "alias": alias,
        "from": before,
        "to": after,
        "why": why,
        **more,
        "last": marker.last,
    }
    try:
        entry["hash"] = digest(entry)
        path().parent.mkdir(parents=True, exist_ok=True)
        stamp = _write((json.dumps(entry) + "\n").encode())
    except UnicodeEncodeError as error:
        raise TrackingError(f"{model}: the reason {why!r} is not valid Unicode text. Give another one.") from error
    except OSError as error:
        raise TrackingError(
            f"{path()}: the move of {alias} of {model} to version {after or 'none'} could not be written down: {error}."
            " The alias was not moved. Free space or mend the permissions, then give the command again."
        ) from error
    places = marker.positions | {model: marker.positions.get(model, {}) | {alias: after}}
    _keep(_Marker(stamp=stamp, num_lines=marker.num_lines + 1, last=entry["hash"], positions=places))
    return entry


def entries(model: str | None = None) -> list[Entry]:
    """Return the moves, oldest first; of one model, or of all.

    Raises:
        TrackingError: A line is not one of a ledger.
    """
    return [entry for entry in _entries() if model in (None, entry["model"])]


def alias_positions(model: str) -> dict[str, str | None]:
    """Return at which versions the ledger says that a model's aliases stand; hold the lock of promotions.

    Raises:
        TrackingError: The ledger was changed.
    """
    return dict(_checked().positions.get(model, {}))


def verify() -> int:
    """Check the chain by reading every line: that none was changed, put in, or taken out before the last one.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, taken out or put in.
    """
    return _chain().num_lines


def repair() -> None:
    """Move a torn last line aside; hold the lock of promotions.

    Raises:
        TrackingError: The torn bytes cannot be kept.
    """
    data = _read()
    tail = data[data.rfind(b"\n") + 1 :]
    if not tail:
        return
    try:
        if _is_whole(tail):
            _write(b"\n")
            return
        aside = path().with_name(f"ledger.torn-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        aside.write_bytes(tail)
        os.truncate(path(), len(data) - len(tail))
    except OSError as error:
        raise TrackingError(
            f"{path()}: the last line is torn and cannot be moved aside: {error}. Free space or mend the permissions, "
            "then give the command again."
        ) from error
    logger.warning("%s: the last line was torn; its %d bytes are kept in %s.", path(), len(tail), aside)


def _checked() -> _Marker:
    """Return what the ledger comes to; it is read only if it is not the file that the marker speaks of."""
    marker = _marker()
    if marker.stamp == _stamp():
        return marker
    repair()
    fresh = _chain()
    _keep(fresh)
    return fresh


def _chain() -> _Marker:
    """Check every line."""
    known, stamp = _marker(), _stamp()
    num_lines, last = 0, GENESIS_HASH
    places: dict[str, dict[str, str | None]] = {}
    for num_lines, line in enumerate(_entries(), start=1):
        misplaced = num_lines == known.num_lines and line["hash"] != known.last
        if line["last"] != last or _hash_of(line) != line["hash"] or misplaced:
            raise TrackingError(f"{path()}:{num_lines}: the ledger was changed here. Restore it from a backup.")
        last = line["hash"]
        places.setdefault(line["model"], {})[line["alias"]] = line["to"]
    if num_lines < known.num_lines:
        raise TrackingError(
            f"{path()}: has {num_lines} lines, and had {known.num_lines}: the last ones were taken out. Restore it "
            f"from a backup; if there is none, delete {MARKER} beside it to go on from the lines that are left."
        )
    return _Marker(stamp=stamp, num_lines=num_lines, last=last, positions=places)


def _entries() -> Iterator[Entry]:
    *whole, tail = _read().split(b"\n")
    for number, line in enumerate(whole, start=1):
        yield _parse(number, line)
    if tail and _is_whole(tail):
        yield _parse(len(whole) + 1, tail)
    elif tail:
        logger.warning("%s: the last line is torn and left out; the next promotion moves it aside.", path())


def _parse(number: int, line: bytes) -> Entry:
    try:
        entry: Entry = json.loads(line.decode())
        _Line.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _bad_line(number, f"{place}: {first['msg']}" if place else first["msg"]) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise _bad_line(number, str(error)) from error
    return entry


def _bad_line(number: int, why: str) -> TrackingError:
    return TrackingError(
        f"{path()}:{number}: not a line of the ledger ({why}); expected one JSON object as Tuneline wrote it. Restore "
        "it from a backup."
    )


def _is_whole(tail: bytes) -> bool:
    """Whether a last line lacks its newline alone."""
    try:
        entry = _parse(0, tail)
    except TrackingError:
        return False
    return _hash_of(entry) == str(entry["hash"])


def _hash_of(entry: Entry) -> str:
    """Hash a line; text that is no Unicode, which was never written here, has none."""
    try:
        return digest({key: value for key, value in entry.items() if key != "hash"})
    except UnicodeEncodeError:
        return ""


def _read() -> bytes:
    try:
        return path().read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise TrackingError(f"{path()}: the ledger cannot be read: {error}.") from error


def _write(data: bytes) -> Stamp:
    """Append by one call and wait for the disk; a failure leaves the file as it was.

    Returns:
        The stamp of the file behind it.
    """
    file = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        try:
            if (done := os.write(file, data)) < len(data):
                raise OSError(f"the disk took {done} of {len(data)} bytes")
            os.fsync(file)
        except BaseException:
            os.ftruncate(file, size)
            raise
        return _stamp_of(os.fstat(file))
    finally:
        os.close(file)


def _stamp() -> Stamp | None:
    try:
        return _stamp_of(path().stat())
    except OSError:
        return None


def _stamp_of(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _marker() -> _Marker:
    """Return the marker; one that is gone or torn says nothing, and costs a reading of the ledger."""
    try:
        return _Marker.model_validate_json((state.root() / MARKER).read_bytes())
    except (OSError, ValidationError):
        return _Marker()


def _keep(marker: _Marker) -> None:
    """Keep a marker, whole or not at all; without it the next append reads the ledger."""
    fresh = state.root() / f"{MARKER}.new"
    with contextlib.suppress(OSError):
        fresh.write_text(marker.model_dump_json())
        fresh.replace(state.root() / MARKER)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
