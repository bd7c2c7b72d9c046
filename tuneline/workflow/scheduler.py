"""The scheduler: fires due schedules of this stack, each in a fresh process.

A fresh process imports and compiles the pipeline anew, so that edited code and changed data are seen; a stored
snapshot would keep the old hashes of the code. Times are UTC. Times that passed while nobody looked are made up for
by one run. One scheduler a state root; its memory is `scheduler.json`, so a restart neither repeats a run nor loses
one.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from croniter import croniter
from filelock import Timeout

from tuneline import state
from tuneline.errors import TunelineError
from tuneline.workflow.schedules import Schedule

MEMORY = "scheduler.json"
RUNNING = "running"


@dataclass(frozen=True)
class Firing:
    """One run that was started: its exit code, and where its output lies."""

    schedule: str
    due: str
    exit_code: int
    log: str


def launch(schedule: Schedule, log: Path) -> int:
    """Run a schedule's pipeline in a fresh process; returns its exit code."""
    command = [sys.executable, "-m", "tuneline.workflow.fire", schedule.id]
    with log.open("w") as output:
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Scheduler:
    """Looks at the clock and at ZenML's schedules; what it is given can be replaced in tests."""

    schedules: Callable[[], list[Schedule]]
    launch: Callable[[Schedule, Path], int] = launch
    clock: Callable[[], datetime] = _now
    tell: Callable[[str], None] = lambda line: None

    def look(self) -> list[Firing]:
        """Fire what is due, once each."""
        return [self._fire(schedule, due) for schedule in self.schedules() if (due := self._due(schedule))]

    def run(self, poll_seconds: float, max_firings: int | None = None) -> list[Firing]:
        """Look again and again.

        Args:
            poll_seconds: Seconds between two looks.
            max_firings: Stop after so many; None goes on until the process is stopped.

        Raises:
            TunelineError: Another scheduler works on this state root.
        """
        fired: list[Firing] = []
        with only_one():
            while max_firings is None or len(fired) < max_firings:
                fired += self.look()
                if max_firings is None or len(fired) < max_firings:
                    time.sleep(poll_seconds)
        return fired

    def _due(self, schedule: Schedule) -> datetime | None:
        """Return the last time of the schedule that has passed and was not fired yet."""
        if not schedule.active:
            return None
        last = recall().get(schedule.id, {})
        if last.get("status") == RUNNING:  # the scheduler was stopped in the middle: the run is started again
            return datetime.fromisoformat(last["due"])
        since = datetime.fromisoformat(last["due"]) if last else schedule.created
        now = self.clock()
        if croniter(schedule.cron_expression, since).get_next(datetime) > now:
            return None
        times = croniter(schedule.cron_expression, now)
        exact = croniter.match(schedule.cron_expression, now) and now.second == 0 and now.microsecond == 0
        return now if exact else times.get_prev(datetime)

    def _fire(self, schedule: Schedule, due: datetime) -> Firing:
        stamp = due.strftime("%Y%m%dT%H%M%SZ")
        log = state.folder("logs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', schedule.name)}-{stamp}.log"
        remember(schedule.id, {"name": schedule.name, "due": due.isoformat(), "status": RUNNING, "log": str(log)})
        self.tell(f"{schedule.name}: due {due:%Y-%m-%d %H:%M} UTC, started")
        try:
            code = self.launch(schedule, log)
        except OSError as error:  # no process could be started; the other schedules must still be looked at
            log.write_text(f"The run could not be started: {error}\n")
            code = 127
        status = "completed" if code == 0 else f"failed with exit code {code}"
        remember(schedule.id, {"name": schedule.name, "due": due.isoformat(), "status": status, "log": str(log)})
        self.tell(f"{schedule.name}: {status}, output in {log}")
        return Firing(schedule.name, due.isoformat(), code, str(log))


def only_one() -> AbstractContextManager[object]:
    """Return the lock of this state root's scheduler.

    Raises:
        TunelineError: Another one holds it.
    """
    try:
        return state.lock("scheduler", timeout_seconds=0).acquire()
    except Timeout:
        raise TunelineError(f"Another scheduler works on {state.root()}. Stop it first.") from None


def recall() -> dict[str, Any]:
    """Return, for each schedule's id, what was fired last."""
    path = state.root() / MEMORY
    memory: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return memory


def remember(schedule_id: str, entry: dict[str, Any]) -> None:
    """Write down what was fired, whole or not at all."""
    path = state.root() / MEMORY
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(recall() | {schedule_id: entry}, indent=1))
    fresh.replace(path)
