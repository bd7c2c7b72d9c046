"""Runs of the scheduler as real processes: killed, stopped, adopted, limited in time."""

import os
import signal
import sys
import time
from datetime import UTC, datetime

import psutil
import pytest

from tuneline import signals
from tuneline.runner import run_processes, scheduler, scheduler_state
from tuneline.runner.scheduler import Scheduler
from tuneline.zenml_integration.schedules import Schedule

YEARLY = Schedule(
    "an-id", "yearly", "0 0 1 1 *", active=True, created=datetime(2020, 2, 2, tzinfo=UTC), pipeline_id="p"
)

RUN = """
import os, pathlib, signal, subprocess, sys, time
folder, ended = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
if (folder / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with (folder / "started").open("a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
while not (folder / "go").exists():
    time.sleep(0.02)
ended.write_text("3")
sys.exit(3)
"""
"""Starts a child that sleeps, and ends when the file `go` exists; the child keeps running."""


@pytest.fixture
def folder(home, tmp_path, monkeypatch):
    """Folder with the pids of runs; processes that still run after the test are killed."""
    monkeypatch.setattr(
        run_processes, "command", lambda schedule, ended: [sys.executable, "-c", RUN, str(tmp_path), str(ended)]
    )
    yield tmp_path
    for pid in started_pids(tmp_path):
        if run_processes.process_start_time(pid):
            os.kill(pid, signal.SIGKILL)


def started_pids(folder):
    text = (folder / "started").read_text() if (folder / "started").exists() else ""
    return [int(word) for word in text.split()]


def make_scheduler(**changes):
    options = {"grace_seconds": 0.3, **changes}
    return Scheduler(lambda: [YEARLY], report=lambda line: None, **options)


def start_scheduler(folder, **changes):
    """Run a scheduler in a separate process; return its pid after it has started a run."""
    before = len(started_pids(folder))
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = signals.run_command(lambda: make_scheduler(**changes).run(poll_seconds=0.05))
        finally:
            os._exit(code)
    wait_for(lambda: len(started_pids(folder)) > before)
    wait_for(lambda: (entry := scheduler_state.load().get(YEARLY.id)) and entry.pid)
    return pid


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timeout"
        time.sleep(0.02)


def is_alive(pid):
    return bool(run_processes.process_start_time(pid))


def stop_scheduler(pid, number):
    """Send a signal to a scheduler and wait for it; return its exit code."""
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("memory", ["whole", "torn"])
def test_the_run_of_a_killed_scheduler_is_monitored_and_not_started_twice(folder, home, memory):
    assert stop_scheduler(start_scheduler(folder), signal.SIGKILL) == -signal.SIGKILL
    run, child = started_pids(folder)
    assert is_alive(run)
    if memory == "torn":
        (home / "scheduler.json").write_text("{")
    lines = []
    second = make_scheduler()
    second.report = lines.append

    assert second.poll() == []
    assert started_pids(folder) == [run, child]
    assert any(f"the run of 2026-01-01T00:00:00+00:00 is still running (process {run})" in line for line in lines)

    (folder / "go").touch()
    wait_for(lambda: not is_alive(run))
    (firing,) = second.poll()
    assert (firing.exit_code, firing.due) == (3, "2026-01-01T00:00:00+00:00")
    assert scheduler_state.load()[YEARLY.id].status == "failed with exit code 3"
    wait_for(lambda: not is_alive(child))
    assert second.poll() == []
    assert started_pids(folder) == [run, child]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 2), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_stopped_scheduler_ends_the_processes_of_its_run_and_restarts_it_later(folder, number, code, stubborn):
    if stubborn:
        (folder / "stubborn").touch()
    first = start_scheduler(folder)

    assert stop_scheduler(first, number) == code

    run, child = started_pids(folder)
    assert not is_alive(run)
    wait_for(lambda: not is_alive(child))
    assert scheduler_state.load()[YEARLY.id].status == scheduler_state.STOPPED
    (folder / "go").touch()
    second = make_scheduler()
    (firing,) = second.run(poll_seconds=0.05, max_firings=1)
    assert firing.due == "2026-01-01T00:00:00+00:00"
    assert len(started_pids(folder)) == 4


def test_a_run_beyond_its_time_limit_is_ended_with_its_children(folder):
    (folder / "stubborn").touch()

    (firing,) = make_scheduler(limit_seconds=0.5).run(poll_seconds=0.05, max_firings=1)

    assert firing.exit_code in (-signal.SIGKILL, -signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, started_pids(folder))))
    assert scheduler_state.load()[YEARLY.id].status.startswith("failed: stopped after the time limit of ")


def test_a_killed_run_of_a_killed_scheduler_is_started_again(folder):
    stop_scheduler(start_scheduler(folder), signal.SIGKILL)
    os.kill(started_pids(folder)[0], signal.SIGKILL)
    wait_for(lambda: not is_alive(started_pids(folder)[0]))

    second = start_scheduler(folder)

    assert len(started_pids(folder)) == 4
    stop_scheduler(second, signal.SIGTERM)


def test_a_process_that_reuses_the_pid_is_not_killed(folder):
    other = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        record = run_processes.RunRecord(YEARLY.id, "yearly", "2026-01-01T00:00:00+00:00", "", other.pid, birth="1")
        job = run_processes.ProcessJob(record)
        job.terminate()
        job.kill()

        assert job.code() == -signal.SIGKILL
        assert is_alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_run_once_waits_for_the_runs_that_it_started(folder):
    (folder / "go").touch()

    (firing,) = make_scheduler().run_once()

    assert firing.exit_code == 3


def test_the_command_does_not_import_from_the_working_directory(tmp_path):
    command = run_processes.command(YEARLY, tmp_path / "x.exit")

    assert command[1:] == ["-P", "-m", "tuneline.runner.fire_schedule", "an-id", str(tmp_path / "x.exit")]


def test_the_command_line_has_the_defaults_of_the_scheduler():
    import inspect

    from tuneline.cli import schedules

    parameters = inspect.signature(schedules.scheduler).parameters
    assert (parameters["jobs"].default, parameters["limit_hours"].default) == (
        scheduler.MAX_JOBS,
        scheduler.TIME_LIMIT_HOURS,
    )
