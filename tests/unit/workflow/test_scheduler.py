"""The scheduler fires what is due, once, whatever happens in between."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tuneline.errors import TunelineError
from tuneline.workflow import scheduler
from tuneline.workflow.scheduler import Scheduler
from tuneline.workflow.schedules import Schedule

CREATED = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
TWO = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
"""The first time of the nightly schedule."""


def make_schedule(name="nightly", cron="0 2 * * *", active=True):
    return Schedule(
        id=f"id of {name}", name=name, cron_expression=cron, active=active, created=CREATED, pipeline_id="p"
    )


class World:
    """A clock that is set by hand, and a launch that only remembers."""

    def __init__(self, *schedules, exit_codes=None):
        self.now = CREATED
        self.schedules, self.exit_codes = list(schedules), exit_codes or {}
        self.launched, self.lines = [], []

    def launch(self, schedule, log):
        assert scheduler.recall()[schedule.id]["status"] == "running"
        self.launched.append(schedule.name)
        log.write_text("output")
        return self.exit_codes.get(schedule.name, 0)

    def scheduler(self):
        return Scheduler(lambda: self.schedules, launch=self.launch, clock=lambda: self.now, tell=self.lines.append)

    def look(self, now):
        """Look with a fresh scheduler, as after a restart."""
        self.now = now
        return self.scheduler().look()


@pytest.fixture
def world(home):
    """One nightly schedule."""
    return World(make_schedule())


def dues(firings):
    return [datetime.fromisoformat(firing.due) for firing in firings]


@pytest.mark.parametrize("now", [CREATED, TWO - timedelta(hours=3), TWO - timedelta(microseconds=1)], ids=str)
def test_a_schedule_does_not_fire_before_its_time(world, now):
    assert world.look(now) == []
    assert scheduler.recall() == {}


@pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1), timedelta(seconds=20)], ids=str)
def test_a_due_schedule_fires_once(world, late):
    world.now = TWO + late
    one = world.scheduler()

    fired = one.look()

    assert dues(fired) == [TWO]
    assert [one.look(), one.look()] == [[], []]
    assert world.launched == ["nightly"]


def test_a_schedule_fires_again_at_its_next_time(world):
    first = world.look(TWO)

    assert world.look(TWO + timedelta(hours=23, minutes=59)) == []
    assert dues(first + world.look(TWO + timedelta(days=1))) == [TWO, TWO + timedelta(days=1)]


def test_missed_times_are_made_up_for_by_one_run(world):
    fired = world.look(TWO + timedelta(days=3, hours=5))

    assert dues(fired) == [TWO + timedelta(days=3)]
    assert world.look(TWO + timedelta(days=3, hours=6)) == []


def test_a_time_before_the_schedule_was_made_is_not_missed(world):
    assert world.look(CREATED + timedelta(minutes=5)) == []


def test_a_paused_schedule_does_not_fire(home):
    world = World(make_schedule(active=False), make_schedule("other"))

    world.look(TWO)

    assert world.launched == ["other"]


def test_a_restart_neither_repeats_nor_loses_a_time(home):
    """Looks at random moments, each by a new scheduler; every hour that passed is covered by the next look, once."""
    world = World(make_schedule("hourly", cron="0 * * * *"))
    generator = np.random.default_rng(0)
    now, last = CREATED, CREATED
    for gap in generator.choice([0, 1, 30, 599, 1770, 3600, 9000], size=60):
        now += timedelta(seconds=int(gap))
        hour = now.replace(minute=0, second=0)
        expected = [hour] if hour > last else []
        last = max(hour, last)

        assert dues(world.look(now)) == expected, now


def test_a_run_that_failed_is_written_down_and_stops_no_other(home):
    world = World(make_schedule("broken"), make_schedule("sound"), exit_codes={"broken": 2})

    fired = world.look(TWO)

    assert [(firing.schedule, firing.exit_code) for firing in fired] == [("broken", 2), ("sound", 0)]
    memory = scheduler.recall()
    assert memory["id of broken"]["status"] == "failed with exit code 2"
    assert memory["id of sound"] == {
        "name": "sound",
        "due": "2026-03-02T02:00:00+00:00",
        "status": "completed",
        "log": str(home / "logs" / "sound-20260302T020000Z.log"),
    }
    assert world.look(TWO + timedelta(minutes=1)) == []


def test_what_happens_is_told(world):
    (fired,) = world.look(TWO)

    assert world.lines == [
        "nightly: due 2026-03-02 02:00 UTC, started",
        f"nightly: completed, output in {fired.log}",
    ]


def test_a_deleted_schedule_is_forgotten_by_the_next_look(world):
    world.schedules.clear()

    assert world.look(TWO) == []


def test_it_runs_until_it_has_fired_enough_and_looks_again_until_then(world, monkeypatch):
    monkeypatch.setattr(
        scheduler.time, "sleep", lambda seconds: setattr(world, "now", world.now + timedelta(seconds=seconds))
    )
    world.now = TWO - timedelta(minutes=5)

    fired = world.scheduler().run(poll_seconds=3600, max_firings=2)

    assert dues(fired) == [TWO, TWO + timedelta(days=1)]


@pytest.mark.usefixtures("home")
def test_a_second_scheduler_is_refused():
    with scheduler.only_one(), pytest.raises(TunelineError, match=r"Another scheduler works on .*Stop it first"):
        scheduler.only_one()
    with scheduler.only_one():
        pass


def test_a_scheduler_at_work_refuses_another(world):
    world.now = TWO

    def second(schedule, log):
        with pytest.raises(TunelineError, match="Another scheduler"):
            world.scheduler().run(poll_seconds=0, max_firings=0)
        return 0

    first = Scheduler(lambda: world.schedules, launch=second, clock=lambda: world.now)

    assert [firing.exit_code for firing in first.run(poll_seconds=0, max_firings=1)] == [0]


@pytest.mark.usefixtures("home")
def test_a_launched_process_leaves_its_output_and_its_exit_code(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"\necho trouble >&2\nexit 3\n')
    script.chmod(0o755)
    monkeypatch.setattr(scheduler.sys, "executable", str(script))

    code = scheduler.launch(make_schedule(), tmp_path / "log")

    assert code == 3
    assert (tmp_path / "log").read_text() == "-m tuneline.workflow.fire id of nightly\ntrouble\n"


def test_a_run_that_was_cut_off_with_its_scheduler_is_started_again(world, monkeypatch):
    def killed(schedule, log):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world, "launch", killed)
        with pytest.raises(KeyboardInterrupt):
            world.look(TWO)

    assert dues(world.look(TWO + timedelta(hours=1))) == [TWO]
    assert world.look(TWO + timedelta(hours=2)) == []


def test_a_name_that_is_no_file_name_is_no_trouble(home):
    world = World(make_schedule(name="team/nightly"))

    (firing,) = world.look(TWO)

    assert firing.log.endswith("team_nightly-20260302T020000Z.log")


def test_a_process_that_cannot_be_started_stops_no_other(home, monkeypatch):
    world = World(make_schedule(name="a"), make_schedule(name="b"))
    launch = world.launch

    def refuse_first(schedule, log):
        if schedule.name == "a":
            raise OSError("no process left")
        return launch(schedule, log)

    monkeypatch.setattr(world, "launch", refuse_first)

    assert [firing.exit_code for firing in world.look(TWO)] == [127, 0]
    assert world.look(TWO + timedelta(minutes=1)) == []
