"""The scheduler: fires due schedules of this stack, each in a fresh process.

A fresh process imports and compiles the pipeline anew, so that edited code and changed data are seen; a stored
snapshot would keep the old hashes of the code. Times are UTC. Times that passed while nobody looked are made up for
by one run. One scheduler a state root; its memory is `scheduler.json`, so a restart neither repeats a run nor loses
one. Runs go on side by side up to a limit, never two of one schedule; a run whose scheduler was killed is found again,
and a scheduler that is stopped ends its runs first, which go on when it starts again.
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
"""For a run that is asked to end: a training saves its state after the step that it is in."""

SLICE_SECONDS = 0.2
MAX_ATTEMPTS = 2
"""Starts of one due time whose run was cut off; one that takes the machine down with it must not do so for ever."""


@dataclass(frozen=True)
class FiringResult:
    """One run that has ended: its exit code, and where its output lies."""

    schedule: str
    due: str
    exit_code: int
    log: str


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Scheduler:
    """Looks at the clock and at ZenML's schedules; what it is given can be replaced in tests."""

    schedules: Callable[[], list[Schedule]]
    launch: Callable[[Schedule, datetime, Path], Job] = run_processes.launch
    found: Callable[[], Iterable[Job]] = run_processes.find_running
    """Runs of an earlier scheduler that still live."""

    clock: Callable[[], datetime] = _now
    tell: Callable[[str], None] = lambda line: None
    max_jobs: int = MAX_JOBS
    limit_seconds: float = TIME_LIMIT_HOURS * 3600
    grace_seconds: float = GRACE_SECONDS
    _jobs: dict[str, Job] | None = None
    _ending: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Runs that were asked to end: until when they may, and why."""

    _told: set[str] = field(default_factory=set)

    def look(self, max_starts: int | None = None) -> list[FiringResult]:
        """Start what is due, once each; end what takes too long; return the runs that have ended."""
        self._adopt()
        ended = self._collect()
        self._start_due(max_starts)
        return ended + self._collect()

    def once(self) -> list[FiringResult]:
        """Look once, and wait for what was started.

        Raises:
            TunelineError: Another scheduler works on this state root.
            KeyboardInterrupt: A signal asked to stop; the runs were ended.
        """
        with exclusive_lock(), self._stoppable() as stop:
            ended = self.look()
            while self._running() and not stop:
                _wait(SLICE_SECONDS, stop)
                ended += self._collect()
        return ended

    def run(self, poll_seconds: float, max_firings: int | None = None) -> list[FiringResult]:
        """Look again and again.

        Args:
            poll_seconds: Seconds between two looks.
            max_firings: Stop after so many runs; None goes on until the process is stopped.

        Raises:
            TunelineError: Another scheduler works on this state root.
            KeyboardInterrupt: A signal asked to stop; the runs were ended.
        """
        ended: list[FiringResult] = []
        with exclusive_lock(), self._stoppable() as stop:
            while not stop and (max_firings is None or len(ended) < max_firings):
                left = None if max_firings is None else max(0, max_firings - len(ended) - len(self._running()))
                ended += self.look(left)
                if max_firings is None or len(ended) < max_firings:
                    _wait(poll_seconds, stop)
        return ended

    def _running(self) -> dict[str, Job]:
        if self._jobs is None:
            self._jobs = {}
        return self._jobs

    def _say_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def _adopt(self) -> None:
        if self._jobs is not None:
            return
        self._jobs = {job.record.schedule_id: job for job in self.found()}
        for job in self._jobs.values():
            ticket = job.record
            process = f"process {ticket.pid}" if ticket.pid else "its process is not known, so no time limit holds"
            self.tell(
                f"{ticket.name}: the run of {ticket.due} still lives ({process}); it is watched, not started again"
            )

    def _collect(self) -> list[FiringResult]:
        """Note the runs that have ended, and ask those to end that take too long."""
        ended = []
        for schedule_id, job in list(self._running().items()):
            code = job.code()
            if code is None:
                self._hold_to_limit(schedule_id, job)
                continue
            del self._running()[schedule_id]
            _, why = self._ending.pop(schedule_id, (0.0, ""))
            status = why or ("completed" if code == 0 else f"failed with exit code {code}")
            self._note(schedule_id, job, status)
            ended.append(FiringResult(job.record.name, job.record.due, code, job.record.log))
        return ended

    def _hold_to_limit(self, schedule_id: str, job: Job) -> None:
        until, _ = self._ending.get(schedule_id, (None, ""))
        if until is not None:
            if time.monotonic() > until:
                job.kill()
        elif job.age_seconds() > self.limit_seconds:
            hours = f"{self.limit_seconds / 3600:.3g} hours"
            self.tell(f"{job.record.name}: still runs after {hours}, the time limit of a run; it is ended")
            self._ask_to_end(schedule_id, job, f"failed: ended after the time limit of {hours}")

    def _ask_to_end(self, schedule_id: str, job: Job, why: str) -> None:
        self._ending[schedule_id] = (time.monotonic() + self.grace_seconds, why)
        job.terminate()

    def _note(self, schedule_id: str, job: Job, status: str) -> None:
        ticket, known = job.record, scheduler_state.load().get(schedule_id)
        if known is None or not known.unfinished:  # the memory was lost while the run went on
            known = ScheduleState(
                name=ticket.name, due=datetime.fromisoformat(ticket.due), status=status, log=ticket.log
            )
        self._remember(schedule_id, known.model_copy(update={"status": status, "pid": None}))
        self.tell(f"{known.name}: {status}, output in {known.log}")

    def _remember(self, schedule_id: str, entry: ScheduleState) -> bool:
        try:
            scheduler_state.save(schedule_id, entry)
        except OSError as error:
            self._say_once(
                f"{entry.name}: {state.root() / scheduler_state.FILE} cannot be written ({error}). Free some space."
            )
            return False
        return True

    def _start_due(self, max_starts: int | None) -> None:
        due = sorted(self._all_due(), key=lambda pair: pair[1])
        for schedule, moment in due[:max_starts]:
            if len(self._running()) >= self.max_jobs:
                self._say_once(
                    f"{schedule.name}: due {moment:%Y-%m-%d %H:%M} UTC, waits for one of {self.max_jobs} runs"
                )
                continue
            self._start(schedule, moment)

    def _all_due(self) -> Iterator[tuple[Schedule, datetime]]:
        """Yield what is due; a schedule that cannot be read stops no other."""
        try:
            found = self.schedules()
        except Exception as error:  # a store that is locked or out of reach for a moment
            self._say_once(f"The schedules cannot be read: {' '.join(str(error).split())}. The next look tries again.")
            return
        for schedule in found:
            if not schedule.active or schedule.id in self._running():
                continue
            try:
                moment = self._due(schedule)
            except (ValueError, ArithmeticError) as error:
                self._say_once(f"{schedule.name}: cannot be read ({error}) and is passed over. Record it again.")
                continue
            if moment:
                yield schedule, moment

    def _due(self, schedule: Schedule) -> datetime | None:
        """Return the last time of the schedule that has passed and was not fired yet."""
        now = self.clock()
        if wrong := cron_error(schedule.cron_expression):
            raise ValueError(wrong.rstrip("."))
        last = scheduler_state.load(self._say_once).get(schedule.id)
        if last and last.unfinished and not self._has_ended(schedule, last):
            return last.due
        since = last.due if last else schedule.created
        if since > now:  # the clock stood in the future when this was written
            self.tell(
                f"{schedule.name}: {since:%Y-%m-%d %H:%M} UTC, counted as done, lies ahead; times count from now on"
            )
            entry = last or ScheduleState(name=schedule.name, due=now, status="recorded", log="")
            self._remember(schedule.id, entry.model_copy(update={"due": now}))
            return None
        if croniter(schedule.cron_expression, since).get_next(datetime) > now:
            return None
        times = croniter(schedule.cron_expression, now)
        exact = croniter.match(schedule.cron_expression, now) and now.second == 0 and now.microsecond == 0
        return now if exact else times.get_prev(datetime)

    def _has_ended(self, schedule: Schedule, last: ScheduleState) -> bool:
        """Tell whether a run that no scheduler saw end is over; one that was cut off is started again."""
        code = None if last.status == STOPPED else run_processes.exit_code(last.log)
        if code is not None:
            status = "completed" if code == 0 else f"failed with exit code {code}"
        elif last.status == RUNNING and last.attempts >= MAX_ATTEMPTS:
            status = f"failed: cut off {last.attempts} times"
        else:
            return False
        self._remember(schedule.id, last.model_copy(update={"status": status, "pid": None}))
        self.tell(f"{schedule.name}: {status}, output in {last.log}")
        return True

    def _start(self, schedule: Schedule, due: datetime) -> None:
        last = scheduler_state.load().get(schedule.id)
        again = last.attempts + 1 if last and last.status == RUNNING and last.due == due else 1
        log = state.folder("logs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', schedule.name)}-{due:%Y%m%dT%H%M%SZ}.log"
        entry = ScheduleState(name=schedule.name, due=due, status=RUNNING, log=str(log), attempts=again)
        if not self._remember(schedule.id, entry):
            return
        self.tell(f"{schedule.name}: due {due:%Y-%m-%d %H:%M} UTC, started")
        try:
            job = self.launch(schedule, due, log)
        except OSError as error:  # the other schedules must still be looked at
            log.write_text(f"The run could not be started: {error}\n")
            job = _NotStarted(run_processes.RunRecord(schedule.id, schedule.name, due.isoformat(), str(log)))
        self._running()[schedule.id] = job
        if job.record.pid:
            self._remember(schedule.id, entry.model_copy(update={"pid": job.record.pid}))

    @contextmanager
    def _stoppable(self) -> Iterator[list[int]]:
        """Stop at SIGTERM and SIGINT between two looks; end the runs first. A second signal does not wait for them.

        Yields:
            The signals that came.

        Raises:
            KeyboardInterrupt: A signal came.
        """
        asked: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            asked.append(number)

        main = threading.current_thread() is threading.main_thread()
        wanted = (signal.SIGTERM, signal.SIGINT) if main else ()
        before: dict[signal.Signals, Any] = {number: signal.signal(number, ask) for number in wanted}
        try:
            yield asked
        finally:
            try:
                self._end_all(hurry=lambda: len(asked) > 1)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        if asked:
            raise signals.Terminated if asked[0] == signal.SIGTERM else KeyboardInterrupt

    def _end_all(self, hurry: Callable[[], bool]) -> None:
        for schedule_id, job in self._running().items():
            self._ask_to_end(schedule_id, job, STOPPED)
            self.tell(f"{job.record.name}: is asked to end with the scheduler, which starts it again")
        while self._running():
            self._collect()
            for job in self._running().values() if hurry() else ():
                job.kill()
            time.sleep(0.05)


class _NotStarted:
    """A run whose process could not be started."""

    def __init__(self, ticket: run_processes.RunRecord) -> None:
        self.record = ticket

    def code(self) -> int | None:
        return 127

    def age_seconds(self) -> float:
        return 0.0

    def terminate(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""


def _wait(seconds: float, stop: list[int]) -> None:
    """Sleep in slices, so that a signal is answered soon."""
    for _ in range(max(1, ceil(seconds / SLICE_SECONDS))):
        if not stop:
            time.sleep(min(seconds, SLICE_SECONDS))


def exclusive_lock() -> AbstractContextManager[object]:
    """Return the lock of this state root's scheduler.

    Raises:
        TunelineError: Another one holds it.
    """
    try:
        return state.lock("scheduler", timeout_seconds=0).acquire()
    except Timeout:
        raise TunelineError(f"Another scheduler works on {state.root()}. Stop it first.") from None
