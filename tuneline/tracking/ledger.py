"""The ledger of promotions: an append-only hash chain with one line per move of an alias, or per event of a version.

Guarantee: changing, inserting or removing a line breaks the chain, which `verify` detects by reading every line. A
marker file has the number and hash of the last line, and the size, times and inode of the ledger when the chain was
last verified. If the ledger still has these values, an append does not read the earlier lines. Otherwise it verifies
the whole chain and the position of the marked line, and refuses to write if either fails. So an edit through the file
system, which changes the ctime, stops the next append, and the cost of an append does not depend on the number of
lines. An edit that leaves size, times and inode unchanged (bypassing the file system, or within the clock tick of the
last append) is only detected by `verify`. A rewrite of both ledger and marker is detected by the hash that the registry
stores (`promotion.verify`).

A line is written by one call and is complete only with its newline. A partial last line, left by a killed process or a
full disk, is moved to a separate file (`ledger.torn-*`) with a warning.
"""

import contextlib
import getpass
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneline import filesystem, state
from tuneline.errors import TrackingError
from tuneline.identity import digest

GENESIS_HASH = "0" * 64
MARKER = "ledger.marker.json"

logger = logging.getLogger(__name__)

Event = Literal["serving_rejected"]
"""Kinds of lines that move no alias. `serving_rejected`: a server does not serve the version of an alias."""

Entry = dict[str, Any]
Stamp = tuple[int, int, int, int]
"""Size, modification and change time in ns, and inode of a file."""


class _Line(BaseModel):
    """Required fields of a line; it may have more."""

    model_config = ConfigDict(extra="allow", strict=True)

    when: str
    who: str
    model: str
    alias: str
    before: str | None = Field(alias="from")
    after: str | None = Field(alias="to")
    why: str
    event: Event | None = None
    """None for a move; the alias of an event stays where it is."""

    last: str
    hash: str


class _Marker(BaseModel):
    """A verified chain: the stamp of its file, its last line, and the positions of the aliases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stamp: Stamp | None = None
    """None if there is no file."""

    num_lines: int = 0
    last: str = GENESIS_HASH
    positions: dict[str, dict[str, str | None]] = {}
    """Model -> alias -> version."""


def path() -> Path:
    """Return the path of the ledger."""
    return state.root() / "ledger.jsonl"


def append(model: str, alias: str, before: str | None, after: str | None, why: str, **more: Any) -> Entry:
    """Append a move; hold the lock of promotions.

    Args:
        model: Registered model.
        alias: The alias.
        before: Previous version, if any.
        after: New version, if any.
        why: Reason in one sentence.
        more: Additional JSON-able fields.

    Raises:
        TrackingError: The ledger was changed, or the line cannot be written; then the ledger is unchanged.
    """
    return _append(model, alias, before, after, why, more)


def append_event(event: Event, model: str, alias: str, version: str, why: str, **more: Any) -> Entry:
    """Append an event that moves no alias; hold the lock of promotions.

    Args:
        event: Its kind.
        model: Registered model.
        alias: Alias of the version.
        version: The version.
        why: Reason in one sentence.
        more: Additional JSON-able fields.

    Raises:
        TrackingError: The ledger was changed, or the line cannot be written; then the ledger is unchanged.
    """
    return _append(model, alias, version, version, why, {"event": event, **more})


def _append(model: str, alias: str, before: str | None, after: str | None, why: str, more: dict[str, Any]) -> Entry:
    marker = _verified_marker()
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
        raise TrackingError(f"{model}: the reason {why!r} is not valid Unicode text. Give a valid one.") from error
    except OSError as error:
        what, result = (
            (f"{more['event']} of version {after} of {model}", "")
            if "event" in more
            else (f"the move of {alias} of {model} to version {after or 'none'}", "The alias was not moved. ")
        )
        raise TrackingError(
            f"{path()}: {what} could not be recorded: {error}. {result}Free space or fix the permissions, then run the "
            "command again."
        ) from error
    positions = marker.positions
    if "event" not in more:
        positions = positions | {model: positions.get(model, {}) | {alias: after}}
    _save_marker(_Marker(stamp=stamp, num_lines=marker.num_lines + 1, last=entry["hash"], positions=positions))
    return entry


def entries(model: str | None = None) -> list[Entry]:
    """Return the moves and events of one model or of all models, oldest first.

    Raises:
        TrackingError: A line is not valid.
    """
    return [entry for entry in _entries() if model in (None, entry["model"])]


def alias_positions(model: str) -> dict[str, str | None]:
    """Return alias -> version of a model according to the ledger; hold the lock of promotions.

    Raises:
        TrackingError: The ledger was changed.
    """
    return dict(_verified_marker().positions.get(model, {}))


def verify() -> int:
    """Verify the chain by reading every line: none was changed, inserted, or removed before the last one.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, removed or inserted.
    """
    return _chain().num_lines


def repair() -> None:
    """Move a partial last line to a separate file; hold the lock of promotions.

    Raises:
        TrackingError: The partial line cannot be saved.
    """
    data = _read()
    tail = data[data.rfind(b"\n") + 1 :]
    if not tail:
        return
    try:
        if _is_complete(tail):
            _write(b"\n")
            return
        torn = path().with_name(f"ledger.torn-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        torn.write_bytes(tail)
        os.truncate(path(), len(data) - len(tail))
    except OSError as error:
        raise TrackingError(
            f"{path()}: the last line is incomplete and cannot be moved to a separate file: {error}. Free space or fix "
            "the permissions, then run the command again."
        ) from error
    logger.warning("%s: the last line was incomplete; its %d bytes were moved to %s.", path(), len(tail), torn)


def _verified_marker() -> _Marker:
    """Return the marker; the ledger is read only if its stamp differs from the marker."""
    marker = _marker()
    if marker.stamp == _stamp():
        return marker
    repair()
    verified = _chain()
    _save_marker(verified)
    return verified


def _chain() -> _Marker:
    """Verify every line and return the marker of the chain."""
    marker, stamp = _marker(), _stamp()
    num_lines, last = 0, GENESIS_HASH
    positions: dict[str, dict[str, str | None]] = {}
    for num_lines, line in enumerate(_entries(), start=1):
        misplaced = num_lines == marker.num_lines and line["hash"] != marker.last
        if line["last"] != last or _hash_of(line) != line["hash"] or misplaced:
            raise TrackingError(f"{path()}:{num_lines}: the ledger was changed here. Restore it from a backup.")
        last = line["hash"]
        if not line.get("event"):
            positions.setdefault(line["model"], {})[line["alias"]] = line["to"]
    if num_lines < marker.num_lines:
        raise TrackingError(
            f"{path()}: has {num_lines} lines, and had {marker.num_lines}: the last lines were removed. Restore it "
            f"from a backup; without a backup, delete {MARKER} in its folder to continue from the remaining lines."
        )
    return _Marker(stamp=stamp, num_lines=num_lines, last=last, positions=positions)


def _entries() -> Iterator[Entry]:
    *whole, tail = _read().split(b"\n")
    for number, line in enumerate(whole, start=1):
        yield _parse(number, line)
    if tail and _is_complete(tail):
        yield _parse(len(whole) + 1, tail)
    elif tail:
        logger.warning(
            "%s: the last line is incomplete and ignored; the next promotion moves it to a separate file.", path()
        )


def _parse(number: int, line: bytes) -> Entry:
    try:
        entry: Entry = json.loads(line.decode())
        _Line.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise _bad_line(number, f"{field}: {first['msg']}" if field else first["msg"]) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise _bad_line(number, str(error)) from error
    return entry


def _bad_line(number: int, why: str) -> TrackingError:
    return TrackingError(
        f"{path()}:{number}: not a line of the ledger ({why}); expected one JSON object written by Tuneline. Restore "
        "it from a backup."
    )


def _is_complete(tail: bytes) -> bool:
    """Return whether a last line only lacks its newline."""
    try:
        entry = _parse(0, tail)
    except TrackingError:
        return False
    return _hash_of(entry) == str(entry["hash"])


def _hash_of(entry: Entry) -> str:
    """Return the hash of a line; an empty string for text that is not valid Unicode."""
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
    """Append by one call and flush to the disk; after a failure the file is unchanged.

    Returns:
        The stamp of the file after the write.
    """
    file = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        try:
            if (written := os.write(file, data)) < len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
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
    """Return the marker file's content; if it is missing or damaged, an empty marker, so that the ledger is read."""
    try:
        return _Marker.model_validate_json((state.root() / MARKER).read_bytes())
    except (OSError, ValidationError):
        return _Marker()


def _save_marker(marker: _Marker) -> None:
    """Save the marker; without it, the next append reads the whole ledger."""
    with contextlib.suppress(OSError):
        filesystem.write_atomic(state.root() / MARKER, marker.model_dump_json(), sync=False)  # one write per append


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
