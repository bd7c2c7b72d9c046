"""The scheduler: runs due schedules of the active stack, each in a new process.

A new process imports and compiles the pipeline again, so that it uses the current code and data; a stored snapshot
would keep the old hashes of the code. Times are UTC. Due times that passed while no scheduler ran lead to one run.
There is one scheduler per state root; its state is `scheduler.json`, so that a restart neither repeats nor loses a
run. Runs are parallel up to a limit, at most one per schedule. A run whose scheduler was killed is found again. A
scheduler that is stopped stops its runs first, and resumes them when it starts again.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any

from croniter import croniter
from filelock import Timeout

from tuneline import signals, state
from tuneline.config.schedule import cron_error
from tuneline.errors import TunelineError
from tuneline.runner import run_processes, scheduler_state
from tuneline.runner.run_processes import Job
from tuneline.runner.scheduler_state import RUNNING, STOPPED, ScheduleState
from tuneline.zenml_integration.schedules import Schedule

MAX_JOBS = 2
TIME_LIMIT_HOURS = 72.0
GRACE_SECONDS = 90.0
"""Time that a run gets to stop: a training saves its state after the current step."""

SLICE_SECONDS = 0.2
MAX_ATTEMPTS = 2
"""Maximum number of starts for one due time, so that a run that crashes the machine is not restarted for ever."""


@dataclass(frozen=True)
class FiringResult:
    """A finished run: its exit code and its log file."""

    schedule: str
    due: str
    exit_code: int
    log: str


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Scheduler:
    """Compares the clock with ZenML's schedules and starts runs; tests replace its functions."""

    schedules: Callable[[], list[Schedule]]
    launch: Callable[[Schedule, datetime, Path], Job] = run_processes.launch
    find_running: Callable[[], Iterable[Job]] = run_processes.find_running
    """Returns the runs of an earlier scheduler that are still running."""

    clock: Callable[[], datetime] = _now
    report: Callable[[str], None] = lambda line: None
    max_jobs: int = MAX_JOBS
    limit_seconds: float = TIME_LIMIT_HOURS * 3600
    grace_seconds: float = GRACE_SECONDS
    _jobs: dict[str, Job] | None = None
    _ending: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Runs that are being stopped: the deadline and the reason."""

    _reported: set[str] = field(default_factory=set)

    def poll(self, max_starts: int | None = None) -> list[FiringResult]:
        """Start due schedules, stop runs above the time limit, and return the runs that have finished."""
        self._adopt()
        ended = self._collect()
        self._start_due(max_starts)
        return ended + self._collect()

    def run_once(self) -> list[FiringResult]:
        """Poll once, and wait for the runs that were started.

        Raises:
            TunelineError: Another scheduler runs on this state root.
            KeyboardInterrupt: A signal stopped the scheduler; its runs were stopped.
        """
        with exclusive_lock(), self._stoppable() as stop:
            ended = self.poll()
            while self._running() and not stop:
                _wait(SLICE_SECONDS, stop)
                ended += self._collect()
        return ended

    def run(self, poll_seconds: float, max_firings: int | None = None) -> list[FiringResult]:
        """Poll repeatedly.

        Args:
            poll_seconds: Seconds between two polls.
            max_firings: Stop after this number of runs; None runs until the process is stopped.

        Raises:
            TunelineError: Another scheduler runs on this state root.
            KeyboardInterrupt: A signal stopped the scheduler; its runs were stopped.
        """
        ended: list[FiringResult] = []
        with exclusive_lock(), self._stoppable() as stop:
            while not stop and (max_firings is None or len(ended) < max_firings):
                left = None if max_firings is None else max(0, max_firings - len(ended) - len(self._running()))
                ended += self.poll(left)
                if max_firings is None or len(ended) < max_firings:
                    _wait(poll_seconds, stop)
        return ended

    def _running(self) -> dict[str, Job]:
        if self._jobs is None:
            self._jobs = {}
        return self._jobs

    def _report_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self.report(line)

    def _adopt(self) -> None:
        if self._jobs is not None:
            return
        self._jobs = {job.record.schedule_id: job for job in self.find_running()}
        for job in self._jobs.values():
            record = job.record
            process = f"process {record.pid}" if record.pid else "its process is unknown, so it has no time limit"
            self.report(f"{record.name}: the run of {record.due} is still running ({process}); it is not started again")

    def _collect(self) -> list[FiringResult]:
        """Record finished runs, and stop those above the time limit."""
        ended = []
        for schedule_id, job in list(self._running().items()):
            code = job.code()
            if code is None:
                self._enforce_limit(schedule_id, job)
                continue
            del self._running()[schedule_id]
            _, why = self._ending.pop(schedule_id, (0.0, ""))
            status = why or ("completed" if code == 0 else f"failed with exit code {code}")
            self._record_result(schedule_id, job, status)
            ended.append(FiringResult(job.record.name, job.record.due, code, job.record.log))
        return ended

    def _enforce_limit(self, schedule_id: str, job: Job) -> None:
        until, _ = self._ending.get(schedule_id, (None, ""))
        if until is not None:
            if time.monotonic() > until:
                job.kill()
        elif job.age_seconds() > self.limit_seconds:
            hours = f"{self.limit_seconds / 3600:.3g} hours"
            self.report(f"{job.record.name}: still running after {hours}, the time limit of a run; stopping it")
            self._stop_run(schedule_id, job, f"failed: stopped after the time limit of {hours}")

    def _stop_run(self, schedule_id: str, job: Job, why: str) -> None:
        self._ending[schedule_id] = (time.monotonic() + self.grace_seconds, why)
        job.terminate()

    def _record_result(self, schedule_id: str, job: Job, status: str) -> None:
        record, known = job.record, scheduler_state.load().get(schedule_id)
        if known is None or not known.unfinished:  # the state file was lost during the run
            known = ScheduleState(
                name=record.name, due=datetime.fromisoformat(record.due), status=status, log=record.log
            )
        self._save(schedule_id, known.model_copy(update={"status": status, "pid": None}))
        self.report(f"{known.name}: {status}, output in {known.log}")

    def _save(self, schedule_id: str, entry: ScheduleState) -> bool:
        try:
            scheduler_state.save(schedule_id, entry)
        except OSError as error:
            self._report_once(
                f"{entry.name}: {state.root() / scheduler_state.FILE} cannot be written ({error}). Free disk space."
            )
            return False
        return True

    def _start_due(self, max_starts: int | None) -> None:
        due = sorted(self._all_due(), key=lambda pair: pair[1])
        for schedule, moment in due[:max_starts]:
            if len(self._running()) >= self.max_jobs:
                self._report_once(
                    f"{schedule.name}: due {moment:%Y-%m-%d %H:%M} UTC, waiting: {self.max_jobs} runs are active"
                )
                continue
            self._start(schedule, moment)

    def _all_due(self) -> Iterator[tuple[Schedule, datetime]]:
        """Yield due schedules; one that cannot be read does not affect the others."""
        try:
            schedules = self.schedules()
        except Exception as error:  # the store may be locked or unreachable for a moment
            self._report_once(
                f"The schedules cannot be read: {' '.join(str(error).split())}. The next poll tries again."
            )
            return
        for schedule in schedules:
            if not schedule.active or schedule.id in self._running():
                continue
            try:
                moment = self._due(schedule)
            except (ValueError, ArithmeticError) as error:
                self._report_once(f"{schedule.name}: cannot be read ({error}) and is skipped. Record it again.")
                continue
            if moment:
                yield schedule, moment

    def _due(self, schedule: Schedule) -> datetime | None:
        """Return the last due time that has passed and has no run yet."""
        now = self.clock()
        if problem := cron_error(schedule.cron_expression):
            raise ValueError(problem.rstrip("."))
        last = scheduler_state.load(self._report_once).get(schedule.id)
        if last and last.unfinished and not self._has_ended(schedule, last):
            return last.due
        since = last.due if last else schedule.created
        if since > now:  # the clock was ahead when this was written
            self.report(
                f"{schedule.name}: {since:%Y-%m-%d %H:%M} UTC, the last due time, is in the future; continuing from now"
            )
            entry = last or ScheduleState(name=schedule.name, due=now, status="recorded", log="")
            self._save(schedule.id, entry.model_copy(update={"due": now}))
            return None
        if croniter(schedule.cron_expression, since).get_next(datetime) > now:
            return None
        times = croniter(schedule.cron_expression, now)
        exact = croniter.match(schedule.cron_expression, now) and now.second == 0 and now.microsecond == 0
        return now if exact else times.get_prev(datetime)

    def _has_ended(self, schedule: Schedule, last: ScheduleState) -> bool:
        """Return whether an unfinished run has ended without a scheduler; an interrupted one is started again."""
        code = None if last.status == STOPPED else run_processes.exit_code(last.log)
        if code is not None:
            status = "completed" if code == 0 else f"failed with exit code {code}"
        elif last.status == RUNNING and last.attempts >= MAX_ATTEMPTS:
            status = f"failed: interrupted {last.attempts} times"
        else:
            return False
        self._save(schedule.id, last.model_copy(update={"status": status, "pid": None}))
        self.report(f"{schedule.name}: {status}, output in {last.log}")
        return True

    def _start(self, schedule: Schedule, due: datetime) -> None:
        last = scheduler_state.load().get(schedule.id)
        again = last.attempts + 1 if last and last.status == RUNNING and last.due == due else 1
        log = state.folder("logs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', schedule.name)}-{due:%Y%m%dT%H%M%SZ}.log"
        entry = ScheduleState(name=schedule.name, due=due, status=RUNNING, log=str(log), attempts=again)
        if not self._save(schedule.id, entry):
            return
        self.report(f"{schedule.name}: due {due:%Y-%m-%d %H:%M} UTC, started")
        try:
            job = self.launch(schedule, due, log)
        except OSError as error:  # the other schedules must still run
            log.write_text(f"The run could not be started: {error}\n")
            job = _FailedStart(run_processes.RunRecord(schedule.id, schedule.name, due.isoformat(), str(log)))
        self._running()[schedule.id] = job
        if job.record.pid:
            self._save(schedule.id, entry.model_copy(update={"pid": job.record.pid}))

    @contextmanager
    def _stoppable(self) -> Iterator[list[int]]:
        """Stop at SIGTERM and SIGINT between two polls, after stopping the runs; a second signal kills them.

        Yields:
            The received signals.

        Raises:
            KeyboardInterrupt: A signal was received.
        """
        received: list[int] = []

        def receive(number: int, frame: FrameType | None) -> None:
            received.append(number)

        main = threading.current_thread() is threading.main_thread()
        handled = (signal.SIGTERM, signal.SIGINT) if main else ()
        before: dict[signal.Signals, Any] = {number: signal.signal(number, receive) for number in handled}
        try:
            yield received
        finally:
            try:
                self._end_all(kill_now=lambda: len(received) > 1)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        if received:
            raise signals.Terminated if received[0] == signal.SIGTERM else KeyboardInterrupt

    def _end_all(self, kill_now: Callable[[], bool]) -> None:
        for schedule_id, job in self._running().items():
            self._stop_run(schedule_id, job, STOPPED)
            self.report(f"{job.record.name}: stopping with the scheduler, which resumes it when it starts again")
        while self._running():
            self._collect()
            for job in self._running().values() if kill_now() else ():
                job.kill()
            time.sleep(0.05)


class _FailedStart:
    """A run whose process could not be started."""

    def __init__(self, record: run_processes.RunRecord) -> None:
        self.record = record

    def code(self) -> int | None:
        return 127

    def age_seconds(self) -> float:
        return 0.0

    def terminate(self) -> None:
        """Do nothing."""

    def kill(self) -> None:
        """Do nothing."""


def _wait(seconds: float, stop: list[int]) -> None:
    """Sleep in slices, so that a signal takes effect soon."""
    for _ in range(max(1, ceil(seconds / SLICE_SECONDS))):
        if not stop:
            time.sleep(min(seconds, SLICE_SECONDS))


def exclusive_lock() -> AbstractContextManager[object]:
    """Acquire the scheduler lock of the state root.

    Raises:
        TunelineError: Another scheduler holds it.
    """
    try:
        return state.lock("scheduler", timeout_seconds=0).acquire()
    except Timeout:
        raise TunelineError(f"Another scheduler is running on {state.root()}. Stop it first.") from None
