"""Runs of the scheduler as processes: each leads a new session, can be found again, and is killed as a group.

A process inherits the lock of its schedule, so that the kernel knows whether a run is alive, independent of the
scheduler and of the clock. The lock file names the process; a process number that was reused is recognized by the
start time of the process, relative to the start of the system.
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
"""Suffix of the file next to the log with the exit code of a run, for a scheduler that started after its end."""

SIGKILL_CODE = -int(signal.SIGKILL)


@dataclass(frozen=True)
class RunRecord:
    """A run that was started."""

    schedule_id: str
    name: str
    due: str
    """In ISO format."""

    log: str
    pid: int = 0
    birth: str = ""
    """Start time of the process; see `process_start_time`."""


class Job(Protocol):
    """A running or finished run."""

    record: RunRecord

    def code(self) -> int | None:
        """Return the exit code, or None while the run is alive."""

    def age_seconds(self) -> float:
        """Return the time since the run started."""

    def terminate(self) -> None:
        """Ask the run to save its state and exit."""

    def kill(self) -> None:
        """Kill the run and all its child processes."""


class ProcessJob:
    """A run in a process, started here or by an earlier scheduler."""

    def __init__(self, record: RunRecord, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.record, self._process = record, process

    def code(self) -> int | None:
        """Return the exit code, or None while the run is alive; kill processes that it left behind."""
        if self._process is not None:
            code = self._process.poll()
        elif self._is_alive():
            code = None
        else:
            recorded = exit_code(self.record.log)
            code = SIGKILL_CODE if recorded is None else recorded
        if code is not None:
            self._kill_session()
        return code

    def age_seconds(self) -> float:
        """Return the time since the run started; 0 if its process is unknown."""
        if not self._is_alive():
            return 0.0
        with suppress(psutil.Error):
            return max(0.0, time.time() - psutil.Process(self.record.pid).create_time())
        return 0.0

    def terminate(self) -> None:
        """Send SIGTERM to the session leader, which saves its state and stops its children."""
        if self._is_alive() and self.record.pid:
            with suppress(ProcessLookupError):
                os.kill(self.record.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to every process of the session."""
        if self._is_alive() and self.record.pid:
            with suppress(ProcessLookupError):
                os.kill(self.record.pid, signal.SIGKILL)
        self._kill_session()

    def _is_alive(self) -> bool:
        if not self.record.pid:  # its scheduler was killed before it wrote the number
            return owner.is_locked(lock_path(self.record.schedule_id))
        return process_start_time(self.record.pid) == self.record.birth

    def _kill_session(self) -> None:
        for process in psutil.process_iter() if self.record.pid else ():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.record.pid and process.pid != self.record.pid:
                    os.kill(process.pid, signal.SIGKILL)


def command(schedule: Schedule, ended: Path) -> list[str]:
    """Return the command that runs a schedule; `-P` keeps modules of the working directory from shadowing others."""
    return [sys.executable, "-P", "-m", "tuneline.runner.fire_schedule", schedule.id, str(ended)]


def launch(schedule: Schedule, due: datetime, log: Path) -> ProcessJob:
    """Start a run in a new process.

    Raises:
        OSError: The process could not be started, or a run of this schedule is alive.
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
        record = RunRecord(
            schedule.id, schedule.name, due.isoformat(), str(log), process.pid, process_start_time(process.pid)
        )
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(record)).encode(), 0)
    finally:
        os.close(handle)  # the process keeps the lock
    return ProcessJob(record, process)


def find_running() -> Iterator[ProcessJob]:
    """Find runs that an earlier scheduler started and that are still alive."""
    for path in sorted(state.folder("locks").glob(f"{PREFIX}*.lock")):
        if owner.is_locked(path):
            yield ProcessJob(_read_record(path))


def lock_path(schedule_id: str) -> Path:
    """Return the lock of a schedule, which its run holds."""
    return state.folder("locks") / f"{PREFIX}{schedule_id}.lock"


def _read_record(path: Path) -> RunRecord:
    try:
        record = RunRecord(**json.loads(path.read_bytes()))
        datetime.fromisoformat(record.due)
        return record
    except (ValueError, TypeError):
        schedule_id = path.stem.removeprefix(PREFIX)
        return RunRecord(
            schedule_id, schedule_id, datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(), ""
        )


def exit_code(log: str) -> int | None:
    """Return the exit code that a run wrote next to its log, or None."""
    try:
        return int(Path(log).with_suffix(EXIT_CODE_SUFFIX).read_text())
    except (OSError, ValueError):
        return None


def process_start_time(pid: int) -> str:
    """Return the start time of a live process, independent of clock changes; an empty string if it is not alive."""
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
