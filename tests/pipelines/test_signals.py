"""Commands that are stopped or killed: exit codes, one line, and both stores say that the run failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from tests import tiny
from tuneline import state
from tuneline.zenml_integration import abandoned_runs, tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

PAUSE = """
import pathlib, time

def score(prompts, completions, references):
    pathlib.Path("paused").touch()
    while True:
        time.sleep(0.05)
"""
ENDLESS = {"learning_rate": 1e-3, "max_steps": 100_000, "save_steps": 2}


class Command:
    """A command in a process of its own, which leads a session."""

    def __init__(self, *words):
        program = Path(sys.executable).parent / words[0]
        env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            [program, *words[1:]], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, condition):
        until = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()[-3000:]
            assert time.monotonic() < until, "it took too long"
            time.sleep(0.05)

    def end(self, number):
        """Send a signal; return the exit code and the lines that were written."""
        self.process.send_signal(number)
        text, _ = self.process.communicate(timeout=120)
        return self.process.returncode, [line for line in text.splitlines() if line.strip()]


def latest():
    """Return the newest run of ZenML, its steps' statuses, and those of its runs in MLflow."""
    from zenml.client import Client

    run = Client().get_pipeline_run(Client().list_pipeline_runs(sort_by="desc:created", size=1).items[0].id)
    tracker.connect()
    client = mlflow.MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = [each for each in client.search_runs(experiments) if each.info.run_name.startswith(run.name)]
    return str(run.status), {str(step.status) for step in run.steps.values()}, {each.info.status for each in found}


def test_a_killed_training_is_closed_by_the_next_command_and_keeps_its_state(project):
    path = tiny.write_config(project / "endless.yaml", tiny.recipe(train=ENDLESS))
    command = Command("tuneline", "run", str(path))
    command.wait_for(lambda: list(state.root().glob("training/*/checkpoint-*")))
    (state.root() / "work" / "rows-of-a-user").mkdir()
    command.end(signal.SIGKILL)
    status, steps, in_mlflow = latest()
    assert (status, in_mlflow) == ("running", {"RUNNING"})

    lines = abandoned_runs.close()

    status, steps, in_mlflow = latest()
    assert (status, in_mlflow) == ("failed", {"FAILED"})
    assert not steps & {"running", "initializing"}
    assert "its process is gone, so it was marked as failed" in lines[0]
    assert list((state.root() / "work").iterdir()) == []
    assert list(state.root().glob("training/*/checkpoint-*"))
    assert abandoned_runs.close() == []


def test_ctrl_c_while_training_saves_and_ends_with_130(project):
    path = tiny.write_config(project / "endless.yaml", tiny.recipe(train=ENDLESS | {"learning_rate": 2e-3}))
    known = set(state.root().glob("training/*"))
    command = Command("tuneline", "run", str(path))
    command.wait_for(lambda: [new for new in state.root().glob("training/*/checkpoint-*") if new.parent not in known])

    code, lines = command.end(signal.SIGINT)

    assert code == 130
    assert "The training was stopped by SIGINT after step" in lines[-1]
    assert latest()[0] == "failed"


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 2, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
@pytest.mark.parametrize("words", [("tuneline", "run"), ("zenml", "pipeline", "run", "sft_pipeline", "--config")])
def test_a_signal_outside_training_marks_the_run_failed_and_says_so_in_one_line(project, words, number, code, said):
    (project / "pausing.py").write_text(PAUSE)
    (project / "paused").unlink(missing_ok=True)
    recipe = tiny.recipe()
    recipe["evaluate"] = {**recipe["evaluate"], "metrics": ["rougeL", "pausing:score"]}
    command = Command(*words, str(tiny.write_config(project / "paused.yaml", recipe)))
    command.wait_for((project / "paused").exists)

    found, lines = command.end(number)

    assert found == code, "\n".join(lines)
    assert lines[-1] == f"Stopped by {said}. Finished steps are kept."
    assert not [line for line in lines if "Traceback" in line]
    status, steps, in_mlflow = latest()
    assert status == "failed"
    assert "running" not in steps
    assert "RUNNING" not in in_mlflow
    assert abandoned_runs.close() == []
