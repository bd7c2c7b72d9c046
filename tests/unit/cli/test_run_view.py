"""The view of a run: a line per step, progress, warnings, and no colour codes where there is no terminal."""

import io
import logging
import re

import pytest

from tuneline import progress
from tuneline.cli import run_view
from tuneline.errors import RecipeError
from tuneline.zenml_integration.step_events import StepEvent

STEPS = ["resolve", "train", "evaluate"]


class Stream(io.StringIO):
    """A text stream that is a terminal where `is_terminal` says so."""

    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


class Log:
    """The streams of a log file, without the file."""

    def __init__(self, is_terminal, echo=False):
        self.path, self.echo, self.flushes = "/state/logs/demo.log", echo, 0
        self.stdout, self.stderr = Stream(is_terminal), Stream(is_terminal)

    def flush(self):
        self.flushes += 1

    def lines(self, name="stdout"):
        return getattr(self, name).getvalue().splitlines()


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def log(request, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Log(request.param)


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def show_steps(view, *events):
    for event in events:
        view.on_step(StepEvent(event[0], "started"))
        view.on_step(StepEvent(*event))
    view.close()


def test_each_step_is_one_line_with_its_state_and_duration(log):
    view = run_view.RunView(log, STEPS)

    show_steps(view, ("resolve", "cached", 0.2), ("train", "completed", 83.1), ("evaluate", "failed", 3.25))

    assert [without_codes(line) for line in log.lines()] == [
        "Log      /state/logs/demo.log",
        "resolve   cached",
        "train     done in 1 min 23 s",
        "evaluate  failed after 3.2 s",
    ]
    assert ("\x1b" in log.stdout.getvalue()) == log.stdout.isatty(), "colours on a terminal alone"


def test_cached_steps_can_be_hidden(log):
    view = run_view.RunView(log, STEPS, show_cached=False)

    show_steps(view, ("resolve", "completed", 1.0), ("train", "cached", 0.2), ("evaluate", "stopped", 2.0))

    assert [without_codes(line) for line in log.lines()[1:]] == [
        "resolve   done in 1.0 s",
        "evaluate  stopped after 2.0 s",
    ]


def test_the_line_of_a_step_ends_with_its_last_progress_note(log):
    view = run_view.RunView(log, STEPS)

    view.on_step(StepEvent("train", "started"))
    with progress.use_display(view.display), progress.bar("training", 2) as advance:
        advance(2, "loss 1.5")
    show_steps(view, ("train", "completed", 5.0), ("evaluate", "completed", 1.0))
    view.on_step(StepEvent("train", "completed", 5.0))

    lines = [without_codes(line) for line in log.lines()]
    assert "evaluate  done in 1.0 s" in lines, "the note of another step is not repeated"


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    log = Log(is_terminal=True)
    view = run_view.RunView(log, STEPS)
    now = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 20.0))

    view.on_step(StepEvent("train", "started"))
    with view.display("training", 40) as advance:
        advance(0, "")
        advance(10, "loss 2.1")
        view._bar.refresh()
    view.on_step(StepEvent("train", "completed", 20.0))

    assert "training 10/40, " in without_codes(log.stderr.getvalue())
    assert " left, loss 2.1" in without_codes(log.stderr.getvalue())
    assert without_codes(log.lines()[-1]) == "train     done in 20.0 s  loss 2.1"


def test_without_a_terminal_progress_is_a_line_every_few_seconds(monkeypatch):
    log = Log(is_terminal=False)
    view = run_view.RunView(log, STEPS)
    clock = [0.0]
    monkeypatch.setattr(run_view.time, "monotonic", lambda: clock[0])

    view.on_step(StepEvent("train", "started"))
    with view.display("training", 40) as advance:
        for done in range(1, 41):
            clock[0] += 1.0
            advance(done, f"loss {done}")

    assert log.lines("stderr") == [
        "train     running  training 15/40, 25 s left, loss 15",
        "train     running  training 30/40, 10 s left, loss 30",
    ]


def test_warnings_of_tuneline_are_shown_once_and_others_are_not(log):
    view = run_view.RunView(log, STEPS)

    with run_view._warnings_to(view):
        for _ in range(2):
            logging.getLogger("tuneline.data.align").warning("sources.%s: nothing reads [/b]", "a")
        logging.getLogger("tuneline.data.align").info("a detail")
        logging.getLogger("zenml").warning("a warning of ZenML")

    assert [without_codes(line) for line in log.lines("stderr")] == ["Warning  sources.a: nothing reads [/b]"]


def test_verbose_output_has_no_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    log = Log(is_terminal=True, echo=True)
    view = run_view.RunView(log, STEPS)

    show_steps(view, ("train", "completed", 1.0))

    assert log.stderr.getvalue() == ""
    assert log.flushes, "the log is copied before each line, so that lines keep their order"


def test_a_run_that_does_not_start_leaves_no_log(home):
    with pytest.raises(RecipeError), run_view.open_view("demo", verbose=False):
        raise RecipeError("model: not found.")

    assert list((home / "logs").iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.97, "1 min 00 s"),
        (83.1, "1 min 23 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert progress.duration(seconds) == text
