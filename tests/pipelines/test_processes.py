"""Several processes, directories and installations share one cache and one stack; schedules fire."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.zenml
BIN = Path(sys.executable).parent


def call(*command, cwd, **environment):
    """Run a command in a new process; return its output."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **{k: str(v) for k, v in environment.items()}}
    run = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, f"{command}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout


def latest_run():
    """Return the newest run from the shared store."""
    from tuneline.runner import runs

    (latest,) = runs.latest(1)
    assert latest["status"] == "completed"
    return latest


def cached_steps():
    return latest_run()["steps_cached"], latest_run()["steps_run"]


def test_two_processes_can_initialize_the_stack_at_once(tmp_path):
    env = {**os.environ, "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    env.pop("TUNELINE_HOME", None)
    folder = tmp_path / "checkout"
    folder.mkdir()
    code = "from tuneline.zenml_integration import stack; print('initialized', stack.init())"

    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = {process.communicate(timeout=300)[0].splitlines()[-1] for process in processes}

    assert [process.returncode for process in processes] == [0, 0]
    assert len(names) == 1
    assert "analytics_opt_in: false" in (tmp_path / "zenml" / "config.yaml").read_text()


FIRST_USE = """
from tuneline.tracking import registry
from tuneline.runner import runs
from tuneline.zenml_integration import stack, tracker

stack.is_ready() or stack.init()
tracker.connect()
print(registry.list_versions(), runs.latest(1))
"""


@pytest.mark.slow
def test_two_processes_can_use_an_empty_store_at_once(tmp_path):
    env = {**os.environ, "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    env.pop("TUNELINE_HOME", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    processes = [subprocess.Popen([sys.executable, "-c", FIRST_USE], cwd=tmp_path, env=env, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.splitlines()[-1] for out, _ in outputs] == ["[] []"] * 2


@pytest.fixture(scope="module")
def first_run(project):
    """The number of cached and of executed steps of a run that ZenML's command started."""
    call("zenml", "pipeline", "run", "sft_pipeline", "--config", "run.yaml", cwd=project)
    return cached_steps()


def test_the_zenml_command_runs_the_pipeline_and_shares_its_cache_with_tuneline_run(project, first_run):
    assert first_run == (0, 11)

    output = call("tuneline", "run", "run.yaml", cwd=project)

    assert cached_steps() == (9, 2)
    assert "Nothing has changed" in output
    assert "already registered" in output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, installed into its own folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(
        Path.cwd() if (Path.cwd() / "pyproject.toml").exists() else Path(__file__).parents[2],
        folder / "source",
        ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"),
    )
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (wheel_file,) = folder.glob("tuneline-*.whl")
    call(*pip, "install", "--no-deps", "--target", folder / "site", wheel_file, cwd=folder)
    return folder / "site"


def test_an_installed_wheel_in_another_directory_hits_the_same_cache(project, first_run, wheel, tmp_path):
    environment = {"TUNELINE_HOME": project / ".tuneline", "PYTHONPATH": wheel}
    module_path = call(
        sys.executable, "-c", "import steps, tuneline; print(tuneline.__file__)", cwd=tmp_path, **environment
    )
    assert str(wheel) in module_path

    call("tuneline", "init", cwd=tmp_path, **environment)
    call("zenml", "pipeline", "run", "sft_pipeline", "--config", project / "run.yaml", cwd=tmp_path, **environment)

    assert cached_steps() == (9, 2)


def schedule_file(project, cron):
    return tiny.write_config(
        project / "retrain.yaml",
        tiny.recipe(),
        extra={"pipeline": "retrain_pipeline"},
        schedule={"name": "nightly", "cron_expression": cron},
    )


def test_a_zenml_schedule_fires_in_a_new_process(project):
    from tuneline.runner import scheduler
    from tuneline.zenml_integration import schedules

    call("zenml", "pipeline", "run", "retrain_pipeline", "--config", schedule_file(project, "0 3 * * *"), cwd=project)
    assert "nightly" in call("zenml", "pipeline", "schedule", "list", cwd=project)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(hour=3, minute=0, second=5)
    early = scheduler.Scheduler(schedules.list_schedules, clock=lambda: datetime.now(UTC) + timedelta(seconds=1))
    due = scheduler.Scheduler(schedules.list_schedules, clock=lambda: tomorrow)

    assert early.run_once() == []
    (firing,) = due.run_once()

    assert firing.exit_code == 0, Path(firing.log).read_text()[-2000:]
    assert Path(firing.log).read_text().splitlines()[-1].startswith("retrain_pipeline-scheduled-")
    assert due.run_once() == [], "a firing is not repeated"
    assert latest_run()["pipeline"] == "retrain_pipeline"


@pytest.mark.slow
def test_the_scheduler_command_fires_a_schedule_of_every_minute(project):
    call("tuneline", "schedule", schedule_file(project, "* * * * *"), cwd=project)

    output = call("tuneline", "scheduler", "--poll-seconds", 1, "--max-firings", 1, cwd=project)

    assert "nightly: completed" in output
    (schedule,) = json.loads(call("tuneline", "schedule", "--json", cwd=project))
    assert schedule["last_status"] == "completed"
