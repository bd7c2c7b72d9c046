"""The scheduler starts each due run once, also after restarts, crashes and damaged state."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tuneline.errors import TunelineError
from tuneline.runner import run_processes, scheduler, scheduler_state
from tuneline.runner.scheduler import Scheduler
from tuneline.zenml_integration.schedules import Schedule

CREATED = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
TWO = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
"""The first time of the nightly schedule."""


def make_schedule(name="nightly", cron="0 2 * * *", active=True):
    return Schedule(
        id=f"id of {name}", name=name, cron_expression=cron, active=active, created=CREATED, pipeline_id="p"
    )


class Job:
    """A run whose end is set by the test."""

    def __init__(self, schedule, due, log, code=0):
        self.record = run_processes.RunRecord(schedule.id, schedule.name, due.isoformat(), str(log), pid=7)
        self.exit, self.age, self.signals = code, 0.0, []

    def code(self):
        return self.exit

    def age_seconds(self):
        return self.age

    def terminate(self):
        self.signals.append("terminate")

    def kill(self):
        self.signals.append("kill")


class World:
    """A clock set by the test, and a launch that only records runs."""

    def __init__(self, *schedules, exit_codes=None):
        self.now = CREATED
        self.schedules, self.exit_codes = list(schedules), exit_codes or {}
        self.launched, self.lines, self.jobs = [], [], {}

    def launch(self, schedule, due, log):
        assert scheduler_state.load()[schedule.id].status == "running"
        self.launched.append(schedule.name)
        log.write_text("output")
        self.jobs[schedule.name] = Job(schedule, due, log, self.exit_codes.get(schedule.name, 0))
        return self.jobs[schedule.name]

    def scheduler(self, **changes):
        options = {"clock": lambda: self.now, "report": self.lines.append, "launch": self.launch, **changes}
        return Scheduler(lambda: self.schedules, **options)

    def poll(self, now):
        """Poll with a new scheduler, as after a restart."""
        self.now = now
        return self.scheduler().poll()


@pytest.fixture
def world(home):
    """One nightly schedule."""
    return World(make_schedule())


def due_times(firings):
    return [datetime.fromisoformat(firing.due) for firing in firings]


@pytest.mark.parametrize("now", [CREATED, TWO - timedelta(hours=3), TWO - timedelta(microseconds=1)], ids=str)
def test_a_schedule_does_not_fire_before_its_time(world, now):
    assert world.poll(now) == []
    assert scheduler_state.load() == {}


@pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1), timedelta(seconds=20)], ids=str)
def test_a_due_schedule_fires_once(world, late):
    world.now = TWO + late
    current = world.scheduler()

    fired = current.poll()

    assert due_times(fired) == [TWO]
    assert [current.poll(), current.poll()] == [[], []]
    assert world.launched == ["nightly"]


def test_a_schedule_fires_again_at_its_next_time(world):
    first = world.poll(TWO)

    assert world.poll(TWO + timedelta(hours=23, minutes=59)) == []
    assert due_times(first + world.poll(TWO + timedelta(days=1))) == [TWO, TWO + timedelta(days=1)]


def test_several_missed_times_start_one_run(world):
    fired = world.poll(TWO + timedelta(days=3, hours=5))

    assert due_times(fired) == [TWO + timedelta(days=3)]
    assert world.poll(TWO + timedelta(days=3, hours=6)) == []


def test_times_before_the_creation_of_a_schedule_do_not_count(world):
    assert world.poll(CREATED + timedelta(minutes=5)) == []


def test_a_paused_schedule_does_not_fire(home):
    world = World(make_schedule(active=False), make_schedule("other"))

    world.poll(TWO)

    assert world.launched == ["other"]


def test_a_restart_neither_repeats_nor_loses_a_time(home):
    """Poll at random times, each with a new scheduler; each hour that passed fires once, at the next poll."""
    world = World(make_schedule("hourly", cron="0 * * * *"))
    generator = np.random.default_rng(0)
    now, last = CREATED, CREATED
    for gap in generator.choice([0, 1, 30, 599, 1770, 3600, 9000], size=60):
        now += timedelta(seconds=int(gap))
        hour = now.replace(minute=0, second=0)
        expected = [hour] if hour > last else []
        last = max(hour, last)

        assert due_times(world.poll(now)) == expected, now


def test_a_failed_run_is_recorded_and_does_not_affect_others(home):
    world = World(make_schedule("broken"), make_schedule("sound"), exit_codes={"broken": 2})

    ended = world.poll(TWO)

    assert [(firing.schedule, firing.exit_code) for firing in ended] == [("broken", 2), ("sound", 0)]
    memory = scheduler_state.load()
    assert memory["id of broken"].status == "failed with exit code 2"
    log = str(home / "logs" / "sound-20260302T020000Z.log")
    assert memory["id of sound"] == scheduler_state.ScheduleState(name="sound", due=TWO, status="completed", log=log)
    assert world.poll(TWO + timedelta(minutes=1)) == []


def test_start_and_end_of_a_run_are_reported(world):
    (firing,) = world.poll(TWO)

    assert world.lines == [
        "nightly: due 2026-03-02 02:00 UTC, started",
        f"nightly: completed, output in {firing.log}",
    ]


def test_a_deleted_schedule_does_not_fire(world):
    world.schedules.clear()

    assert world.poll(TWO) == []


def test_the_scheduler_polls_until_max_firings(world, monkeypatch):
    monkeypatch.setattr(
        scheduler.time, "sleep", lambda seconds: setattr(world, "now", world.now + timedelta(seconds=seconds))
    )
    world.now = TWO - timedelta(minutes=5)

    fired = world.scheduler().run(poll_seconds=3600, max_firings=2)

    assert due_times(fired) == [TWO, TWO + timedelta(days=1)]


@pytest.mark.usefixtures("home")
def test_a_second_scheduler_is_refused():
    with (
        scheduler.exclusive_lock(),
        pytest.raises(TunelineError, match=r"Another scheduler is running on .*Stop it first"),
    ):
        scheduler.exclusive_lock()
    with scheduler.exclusive_lock():
        pass


def test_a_running_scheduler_refuses_another_one(world):
    world.now = TWO

    def second(schedule, due, log):
        with pytest.raises(TunelineError, match="Another scheduler"):
            world.scheduler().run(poll_seconds=0, max_firings=0)
        with pytest.raises(TunelineError, match="Another scheduler"):
            world.scheduler().run_once()
        return world.launch(schedule, due, log)

    first = world.scheduler(launch=second)

    assert [firing.exit_code for firing in first.run(poll_seconds=0, max_firings=1)] == [0]


def test_a_run_interrupted_with_its_scheduler_is_started_again(world, monkeypatch):
    def killed(schedule, due, log):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world, "launch", killed)
        with pytest.raises(KeyboardInterrupt):
            world.poll(TWO)

    assert due_times(world.poll(TWO + timedelta(hours=1))) == [TWO]
    assert world.poll(TWO + timedelta(hours=2)) == []


def test_a_run_interrupted_twice_fails_until_its_next_due_time(world):
    world.exit_codes["nightly"] = None  # it never ends; each scheduler ends before it
    for hours in range(3):
        assert world.poll(TWO + timedelta(hours=hours)) == []

    assert world.launched == ["nightly", "nightly"]
    assert scheduler_state.load()["id of nightly"].status == "failed: interrupted 2 times"
    world.exit_codes["nightly"] = 0
    assert due_times(world.poll(TWO + timedelta(days=1))) == [TWO + timedelta(days=1)]


@pytest.mark.parametrize(("code", "status"), [("0", "completed"), ("2", "failed with exit code 2")])
def test_a_run_that_ended_after_its_scheduler_is_not_started_again(world, code, status):
    world.exit_codes["nightly"] = None
    world.poll(TWO)
    (log,) = [entry.log for entry in scheduler_state.load().values()]
    Path(log).with_suffix(".exit").write_text(code)

    assert world.poll(TWO + timedelta(hours=1)) == []
    assert scheduler_state.load()["id of nightly"].status == status
    assert world.launched == ["nightly"]


def test_a_hanging_run_blocks_no_other_and_is_not_started_twice(home):
    world = World(make_schedule("hangs"), make_schedule("hourly", "0 * * * *"), exit_codes={"hangs": None})
    current = world.scheduler()
    for hour in range(3):
        world.now = TWO + timedelta(hours=hour)
        current.poll()

    assert world.launched == ["hangs", "hourly", "hourly", "hourly"]


def test_concurrent_runs_are_limited_and_start_in_order_of_due_time(home):
    world = World(*(make_schedule(str(i), f"{9 - i} 2 * * *") for i in range(4)), exit_codes={"3": None, "2": None})
    world.now = TWO + timedelta(minutes=30)
    current = world.scheduler(max_jobs=2)
    current.poll()
    assert world.launched == ["3", "2"]
    assert "1: due 2026-03-02 02:08 UTC, waiting: 2 runs are active" in world.lines

    world.jobs["3"].exit = 0
    current.poll()
    assert world.launched == ["3", "2", "1"]
    current.poll()
    assert world.launched == ["3", "2", "1", "0"], "waiting runs are not lost"


def test_a_run_beyond_the_time_limit_is_terminated_and_then_killed(world):
    world.exit_codes["nightly"], world.now = None, TWO
    current = world.scheduler(limit_seconds=3600, grace_seconds=0.0)
    current.poll()
    job = world.jobs["nightly"]
    assert job.signals == []

    job.age = 3601
    current.poll()
    current.poll()
    assert job.signals[:2] == ["terminate", "kill"]
    job.exit = -9
    (firing,) = current.poll()

    assert firing.exit_code == -9
    assert scheduler_state.load()["id of nightly"].status == "failed: stopped after the time limit of 1 hours"
    assert current.poll() == [], "its due time has passed"


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "garbage", "", "99 * * * *"])
def test_an_invalid_schedule_is_reported_once_and_does_not_affect_others(home, cron):
    world = World(make_schedule("bad", cron), make_schedule("sound"))
    current = world.scheduler()
    world.now = TWO
    current.poll()
    current.poll()

    assert world.launched == ["sound"]
    (line,) = [line for line in world.lines if line.startswith("bad: ")]
    assert "is skipped. Record it again." in line


def test_an_unreadable_store_is_polled_again(world):
    def broken():
        raise RuntimeError("database is locked\nsomewhere")

    current = world.scheduler()
    current.schedules = broken
    world.now = TWO
    assert current.poll() == []
    current.schedules = lambda: world.schedules

    assert due_times(current.poll()) == [TWO]
    assert "The schedules cannot be read: database is locked somewhere. The next poll tries again." in world.lines


@pytest.mark.parametrize("text", ["", '{"id of nightly": {"due"', "[]", "null", "\xff"])
def test_a_damaged_state_file_is_moved_and_reported(world, home, text):
    world.poll(TWO)
    (home / "scheduler.json").write_bytes(text.encode("latin-1"))

    firings = world.poll(TWO + timedelta(hours=1))

    assert due_times(firings) == [TWO], "the record of the first run is lost"
    assert (home / "scheduler.damaged").read_bytes() == text.encode("latin-1")
    assert sum("is damaged and was moved to" in line for line in world.lines) == 1
    assert world.poll(TWO + timedelta(hours=2)) == []


@pytest.mark.parametrize("entry", [{}, None, {"name": "nightly", "due": "soon", "status": "completed", "log": ""}])
def test_a_damaged_entry_does_not_affect_others(home, entry):
    world = World(make_schedule(), make_schedule("other"))
    world.poll(TWO)
    memory = json.loads((home / "scheduler.json").read_text())
    (home / "scheduler.json").write_text(json.dumps(memory | {"id of nightly": entry}))

    world.poll(TWO + timedelta(hours=1))

    assert sorted(world.launched) == ["nightly", "nightly", "other"]


def test_a_clock_that_was_in_the_future_delays_no_later_run(home):
    world = World(make_schedule())
    world.poll(datetime(2031, 5, 5, 5, 0, tzinfo=UTC))
    assert world.launched == ["nightly"]

    world.poll(TWO + timedelta(hours=1))
    assert any("2031-05-05 02:00 UTC, the last due time, is in the future" in line for line in world.lines)
    world.poll(TWO + timedelta(days=1))

    assert world.launched == ["nightly", "nightly"]


def test_a_schedule_with_a_creation_time_in_the_future_fires(home):
    from dataclasses import replace

    world = World(replace(make_schedule(), created=datetime(2031, 1, 1, tzinfo=UTC)))
    world.poll(TWO - timedelta(hours=1))

    assert due_times(world.poll(TWO)) == [TWO]


def test_no_run_is_started_if_its_record_cannot_be_written(world, monkeypatch):
    def full(schedule_id, entry):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler_state, "save", full)
        assert world.poll(TWO) == []

    assert "cannot be written" in world.lines[-1]
    assert due_times(world.poll(TWO)) == [TWO]


def test_a_schedule_name_may_contain_slashes(home):
    world = World(make_schedule(name="team/nightly"))

    (firing,) = world.poll(TWO)

    assert firing.log.endswith("team_nightly-20260302T020000Z.log")


def test_a_process_that_cannot_be_started_does_not_affect_others(home, monkeypatch):
    world = World(make_schedule(name="a"), make_schedule(name="b"))
    launch = world.launch

    def refuse_first(schedule, due, log):
        if schedule.name == "a":
            raise OSError("no process left")
        return launch(schedule, due, log)

    monkeypatch.setattr(world, "launch", refuse_first)

    assert [firing.exit_code for firing in world.poll(TWO)] == [127, 0]
    assert world.poll(TWO + timedelta(minutes=1)) == []
