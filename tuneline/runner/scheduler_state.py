"""The scheduler's state file, `scheduler.json`: the last run of each schedule and its result.

A damaged file does not stop any schedule: it is moved aside, and each schedule whose due time has passed since it was
recorded runs once, from the cache where nothing changed.
"""

import json
from collections.abc import Callable
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tuneline import filesystem, state

FILE = "scheduler.json"
RUNNING, STOPPED = "running", "stopped with the scheduler"


class ScheduleState(BaseModel):
    """The last firing of one schedule."""

    model_config = ConfigDict(frozen=True)

    name: str
    due: AwareDatetime
    status: str
    log: str
    pid: int | None = None
    """Process id while it runs; the process is a session leader."""

    attempts: int = 1
    """How often this due time was started."""

    @property
    def unfinished(self) -> bool:
        """It was started, and its end is not recorded."""
        return self.status in (RUNNING, STOPPED)


def load(report: Callable[[str], None] = lambda line: None) -> dict[str, ScheduleState]:
    """Return, for each schedule's id, what was fired last.

    Args:
        report: Receives one line for each entry or file that could not be read.
    """
    path = state.root() / FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        content = error
    if not isinstance(content, dict):
        backup = path.with_suffix(".damaged")
        path.replace(backup)
        report(f"{path} is damaged and was moved to {backup.name}: each due schedule runs once more.")
        return {}
    entries = {}
    for schedule_id, entry in content.items():
        try:
            entries[schedule_id] = ScheduleState.model_validate(entry)
        except ValidationError:
            report(f"{path}: the entry {schedule_id} is damaged, so its schedule runs once more if it is due.")
    return entries


def save(schedule_id: str, entry: ScheduleState) -> None:
    """Save the state of a schedule, atomically."""
    entries = load() | {schedule_id: entry}
    content = {key: value.model_dump(mode="json") for key, value in entries.items()}
    filesystem.write_atomic(state.root() / FILE, json.dumps(content, indent=1))


def row(entry: ScheduleState | None) -> dict[str, str | None]:
    """Return the columns of a table about the last run."""
    if entry is None:
        return {"last_due": None, "last_status": None, "last_log": None}
    due: datetime = entry.due
    return {"last_due": due.isoformat(), "last_status": entry.status, "last_log": entry.log}
