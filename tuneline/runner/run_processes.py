"""The scheduler's runs as processes: each leads a session of its own, is found again, and is ended as a whole.

A process inherits the lock of its schedule, so the kernel says whether a run lives, whatever became of the scheduler
and of the clock. The lock's file names the process; a number that went to another process since then is told by the
time of its start, counted from the start of the system.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import psutil

from tuneline import owner, state
from tuneline.zenml_integration.schedules import Schedule

PREFIX = "schedule-"
EXIT_CODE_SUFFIX = ".exit"
"""Beside the log: the exit code that a run wrote down, for a scheduler that did not see it end."""

SIGKILL_CODE = -int(signal.SIGKILL)


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run that was started."""

    schedule_id: str
    name: str
    due: str
    """In ISO format."""

    log: str
    pid: int = 0
    birth: str = ""
    """When the process started; see `birth_of`."""


class Job(Protocol):
    """A run that was started."""

    record: RunRecord

    def code(self) -> int | None:
        """Return the exit code once the run has ended, else None."""

    def age_seconds(self) -> float:
        """Return how long the run has lived."""

    def terminate(self) -> None:
        """Ask the run to save its state and end."""

    def kill(self) -> None:
        """End the run, and whatever it started, at once."""


class ProcessJob:
    """A run in a process, started here or found alive."""

    def __init__(self, ticket: RunRecord, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.record, self._process = ticket, process

    def code(self) -> int | None:
        """Return the exit code once the run has ended; processes that it left behind are ended then."""
        if self._process is not None:
            code = self._process.poll()
        elif self._lives():
            code = None
        else:
            known = exit_code(self.record.log)
            code = SIGKILL_CODE if known is None else known
        if code is not None:
            self._kill_session()
        return code

    def age_seconds(self) -> float:
        """Return how long the run has lived; 0 where its process is not known."""
        if not self._lives():
            return 0.0
        with suppress(psutil.Error):
            return max(0.0, time.time() - psutil.Process(self.record.pid).create_time())
        return 0.0

    def terminate(self) -> None:
        """Send SIGTERM to the leading process, which ends its own children once its state is saved."""
        if self._lives() and self.record.pid:
            with suppress(ProcessLookupError):
                os.kill(self.record.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to every process of the session."""
        if self._lives() and self.record.pid:
            with suppress(ProcessLookupError):
                os.kill(self.record.pid, signal.SIGKILL)
        self._kill_session()

    def _lives(self) -> bool:
        if not self.record.pid:  # its scheduler was killed before it could write the number down
            return owner.is_locked(lock_path(self.record.schedule_id))
        return process_start_time(self.record.pid) == self.record.birth

    def _kill_session(self) -> None:
        for process in psutil.process_iter() if self.record.pid else ():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.record.pid and process.pid != self.record.pid:
                    os.kill(process.pid, signal.SIGKILL)


def command(schedule: Schedule, ended: Path) -> list[str]:
    """Return what runs a schedule's pipeline; `-P` keeps the modules of the working directory from hiding ours."""
    return [sys.executable, "-P", "-m", "tuneline.runner.fire_schedule", schedule.id, str(ended)]


def launch(schedule: Schedule, due: datetime, log: Path) -> ProcessJob:
    """Start a run in a fresh process.

    Raises:
        OSError: No process could be started, or a run of this schedule lives.
    """
    ended = Path(log).with_suffix(EXIT_CODE_SUFFIX)
    ended.unlink(missing_ok=True)
    handle = os.open(lock_path(schedule.id), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command(schedule, ended),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(handle,),
            )
        ticket = RunRecord(
            schedule.id, schedule.name, due.isoformat(), str(log), process.pid, process_start_time(process.pid)
        )
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(ticket)).encode(), 0)
    finally:
        os.close(handle)  # the process keeps the lock
    return ProcessJob(ticket, process)


def find_running() -> Iterator[ProcessJob]:
    """Find runs that an earlier scheduler started and that still live."""
    for path in sorted(state.folder("locks").glob(f"{PREFIX}*.lock")):
        if owner.is_locked(path):
            yield ProcessJob(_ticket(path))


def lock_path(schedule_id: str) -> Path:
    """Return the lock of a schedule, which its run holds."""
    return state.folder("locks") / f"{PREFIX}{schedule_id}.lock"


def _ticket(path: Path) -> RunRecord:
    try:
        ticket = RunRecord(**json.loads(path.read_bytes()))
        datetime.fromisoformat(ticket.due)
        return ticket
    except (ValueError, TypeError):
        schedule_id = path.stem.removeprefix(PREFIX)
        return RunRecord(
            schedule_id, schedule_id, datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(), ""
        )


def exit_code(log: str) -> int | None:
    """Return the exit code that a run wrote beside its log, or None."""
    try:
        return int(Path(log).with_suffix(EXIT_CODE_SUFFIX).read_text())
    except (OSError, ValueError):
        return None


def process_start_time(pid: int) -> str:
    """Return when a living process started, in a form that no change of the clock touches; else an empty string."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # ticks since the system started
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    try:  # systems without /proc
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.Error:
        return ""
