"""Stopped and killed commands: exit code, one line of output, and a failed run in ZenML and MLflow."""

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
    """A command in a new process."""

    def __init__(self, *words):
        program = Path(sys.executable).parent / words[0]
        env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            [program, *words[1:]], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, condition):
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()[-3000:]
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.05)

    def stop(self, number):
        """Send a signal; return the exit code and the lines of output."""
        self.process.send_signal(number)
        text, _ = self.process.communicate(timeout=120)
        return self.process.returncode, [line for line in text.splitlines() if line.strip()]


def latest_statuses():
    """Return the statuses of the newest ZenML run, of its steps and of its MLflow runs."""
    from zenml.client import Client

    run = Client().get_pipeline_run(Client().list_pipeline_runs(sort_by="desc:created", size=1).items[0].id)
    tracker.connect()
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    mlflow_runs = [entry for entry in client.search_runs(experiments) if entry.info.run_name.startswith(run.name)]
    return (
        str(run.status),
        {str(step.status) for step in run.steps.values()},
        {mlflow_run.info.status for mlflow_run in mlflow_runs},
    )


def test_the_next_command_marks_a_killed_training_as_failed_and_keeps_its_state(project):
    path = tiny.write_config(project / "endless.yaml", tiny.recipe(train=ENDLESS))
    command = Command("tuneline", "run", str(path))
    command.wait_for(lambda: list(state.root().glob("training/*/checkpoint-*")))
    (state.root() / "work" / "rows-of-a-user").mkdir()
    command.stop(signal.SIGKILL)
    status, steps, mlflow_statuses = latest_statuses()
    assert (status, mlflow_statuses) == ("running", {"RUNNING"})

    lines = abandoned_runs.close()

    status, steps, mlflow_statuses = latest_statuses()
    assert (status, mlflow_statuses) == ("failed", {"FAILED"})
    assert not steps & {"running", "initializing"}
    assert "its process is gone, so it was marked as failed" in lines[0]
    assert list((state.root() / "work").iterdir()) == []
    assert list(state.root().glob("training/*/checkpoint-*"))
    assert abandoned_runs.close() == []


def test_ctrl_c_during_training_saves_a_checkpoint_and_exits_with_130(project):
    path = tiny.write_config(project / "endless.yaml", tiny.recipe(train=ENDLESS | {"learning_rate": 2e-3}))
    before = set(state.root().glob("training/*"))
    command = Command("tuneline", "run", str(path))
    command.wait_for(lambda: [new for new in state.root().glob("training/*/checkpoint-*") if new.parent not in before])

    code, lines = command.stop(signal.SIGINT)

    assert code == 130
    assert "The training was stopped by SIGINT after step" in lines[-1]
    assert latest_statuses()[0] == "failed"


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 2, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
@pytest.mark.parametrize("words", [("tuneline", "run"), ("zenml", "pipeline", "run", "sft_pipeline", "--config")])
def test_a_signal_outside_training_marks_the_run_as_failed_and_prints_one_line(project, words, number, code, name):
    (project / "pausing.py").write_text(PAUSE)
    (project / "paused").unlink(missing_ok=True)
    recipe = tiny.recipe()
    recipe["evaluate"] = {**recipe["evaluate"], "metrics": ["rougeL", "pausing:score"]}
    command = Command(*words, str(tiny.write_config(project / "paused.yaml", recipe)))
    command.wait_for((project / "paused").exists)

    exit_code, lines = command.stop(number)

    assert exit_code == code, "\n".join(lines)
    assert lines[-1] == f"Stopped by {name}. Finished steps are kept."
    assert not [line for line in lines if "Traceback" in line]
    status, steps, mlflow_statuses = latest_statuses()
    assert status == "failed"
    assert "running" not in steps
    assert "RUNNING" not in mlflow_statuses
    assert abandoned_runs.close() == []
