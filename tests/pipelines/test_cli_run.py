"""Output of `tuneline run`: on a terminal, in a file, with --verbose, and if a step fails."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.zenml

PROGRAM = Path(sys.executable).parent / "tuneline"
STEPS = [
    "resolve",
    "ingest_first",
    "ingest_second",
    "align_first",
    "align_second",
    "merge",
    "tokenize_pack",
    "train",
    "merge_adapter",
    "evaluate",
    "register",
]
FAILING = """
def score(prompts, completions, references):
    print("printed by the metric")
    raise ZeroDivisionError("no answers")
"""
ESCAPE = "\x1b"


def command(*words, **streams):
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "120", "ZENML_LOGGING_VERBOSITY": "INFO"}
    return subprocess.Popen([PROGRAM, *map(str, words)], env=env, text=True, **streams)


def run(*words):
    process = command(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=600)
    return process.returncode, out.splitlines(), err


def run_on_terminal(*words):
    """Return the text that a terminal received."""
    controller, terminal = pty.openpty()
    process = command(*words, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    received = b""
    while True:
        try:
            received += os.read(controller, 65536)
        except OSError:  # the last process closed the terminal
            break
    os.close(controller)
    assert process.wait(timeout=60) == 0, received.decode()
    return received.decode()


def log_of(lines):
    (path,) = [line.removeprefix("Log      ") for line in lines if line.startswith("Log      ")]
    return Path(path)


def step_lines(lines):
    return {line.split()[0]: " ".join(line.split()[1:3]) for line in lines if line.split(" ")[0] in STEPS}


@pytest.fixture(scope="module")
def first(project):
    """Standard output and standard error of the first run of a project, without a terminal."""
    code, lines, err = run("run", "run.yaml")
    assert code == 0, err
    return lines, err


def test_each_step_prints_one_plain_line_without_log_records(first, project):
    lines, err = first

    assert list(step_lines(lines)) == STEPS
    assert set(step_lines(lines).values()) == {"done in"}
    assert re.search(r"^train .*done in .* s  loss \d", "\n".join(lines), re.MULTILINE)
    assert ESCAPE not in "\n".join(lines) + err
    assert "zenml" not in err.lower()
    assert [word for line in lines for word in line.split()[:1] if word in ("Model", "Gate", "Run")] == [
        "Model",
        "Gate",
        "Run",
    ]
    assert log_of(lines).parent == project / ".tuneline" / "logs"


def test_the_log_file_has_the_log_records_of_zenml_and_of_the_steps(first):
    text = log_of(first[0]).read_text()

    assert re.search(r"INFO zenml\.orchestrators\.step_launcher: Step `train` has (started|finished)", text)
    assert "INFO steps.resolve: base model" in text
    assert ESCAPE not in text


def test_a_terminal_shows_the_running_step(first):
    screen = run_on_terminal("run", "run.yaml", "--recompute", "train")

    screen_text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).replace("\r", "\n")
    assert ESCAPE in screen
    assert re.search(r"train .*training 2/2, loss \d", screen_text)
    assert re.search(r"^train +done in .* s  loss \d", screen_text, re.MULTILINE)
    assert re.search(r"^merge +cached", screen_text, re.MULTILINE)
    assert "step_launcher" not in screen_text
    assert "Before and after" in screen_text


def test_a_failed_step_prints_its_line_and_one_error_after_the_verbose_log(first, project):
    (project / "failing.py").write_text(FAILING)
    recipe = tiny.recipe()
    recipe["evaluate"] = {**recipe["evaluate"], "metrics": ["rougeL", "failing:score"]}

    code, lines, err = run("run", tiny.write_config(project / "failing.yaml", recipe), "--verbose")

    assert code == 2
    assert step_lines(lines)["train"] == "cached"
    assert re.fullmatch(r"evaluate +failed after .* s", lines[-1])
    log, _, message = err.rstrip("\n").rpartition("\n")
    assert "failing:score" in message
    assert "Using cached version of step `train`." in log
    assert "Traceback" not in log
    text = log_of(lines).read_text()
    assert text.startswith(log)
    assert "printed by the metric" in text
    assert "ZeroDivisionError: no answers" in text
    assert ESCAPE not in "\n".join(lines) + err


def test_a_refused_recipe_prints_one_line_and_leaves_no_log(first, project):
    logs = set((project / ".tuneline" / "logs").iterdir())
    recipe = tiny.recipe(sources=[{"name": "bad", "path": "data/bad.jsonl", "format": "alpaca"}])
    (project / "data" / "bad.jsonl").write_text("{\n")

    code, lines, err = run("run", tiny.write_config(project / "refused.yaml", recipe))

    assert (code, lines) == (2, [])
    assert "bad.jsonl:1" in err
    assert len(err.splitlines()) == 1
    assert set((project / ".tuneline" / "logs").iterdir()) == logs
