"""The ledger of promotions: one line a move of an alias, only ever appended, each line holding the hash of the last.

So a line that was changed, put in or taken out is found (`verify`), but for the last, which nothing follows:
`promotion.verify` holds the registry against that one.
"""

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneline import state
from tuneline.errors import TrackingError
from tuneline.identity import digest

START = "0" * 64


def path() -> Path:
    """Return where the ledger lies."""
    return state.root() / "ledger.jsonl"


def append(model: str, alias: str, before: str | None, after: str | None, why: str, **more: Any) -> dict[str, Any]:
    """Write down a move; call it while holding the lock of promotions.

    Args:
        model: Registered model.
        alias: Which alias moved.
        before: Version that it pointed at, if any.
        after: Version that it points at now, if any.
        why: In one sentence.
        more: Anything else worth keeping, JSON-able.
    """
    lines = entries()
    entry = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        "model": model,
        "alias": alias,
        "from": before,
        "to": after,
        "why": why,
        **more,
        "last": lines[-1]["hash"] if lines else START,
    }
    entry["hash"] = digest(entry)
    path().parent.mkdir(parents=True, exist_ok=True)
    with path().open("a") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return entry


def entries(model: str | None = None) -> list[dict[str, Any]]:
    """Return the moves, oldest first; of one model, or of all."""
    if not path().exists():
        return []
    lines = [_parse(number, line) for number, line in enumerate(path().read_text().splitlines(), start=1) if line]
    return [line for line in lines if model in (None, line["model"])]


def _parse(number: int, line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrackingError(f"{path()}:{number}: the line is torn: {error.msg}. Restore it from a backup.") from error
    return entry


def verify() -> int:
    """Check the chain: that no line was changed, put in, or taken out before the last one.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, taken out or put in.
    """
    last = START
    lines = entries()
    for number, line in enumerate(lines, start=1):
        content = {key: value for key, value in line.items() if key != "hash"}
        if line["last"] != last or digest(content) != line["hash"]:
            raise TrackingError(f"{path()}:{number}: the ledger was changed here. Restore it from a backup.")
        last = line["hash"]
    return len(lines)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
