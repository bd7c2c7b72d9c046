"""Commands after training: schedules, promotion, rollback, history and serving."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from tests import tiny
from tests.integration import reference
from tuneline.cli.app import app
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

TRAIN = {"learning_rate": 1e-2, "max_steps": 60, "lr_scheduler_type": "constant"}
FOX = "The quick brown fox answers."


@pytest.fixture(scope="module")
def recipe(project):
    """Recipe keys for a model that learns one sentence."""
    rows = [{"instruction": f"What is {i}?", "input": "", "output": FOX} for i in range(60)]
    tiny.write_jsonl(project / "data" / "fox.jsonl", rows)
    return {
        "sources": [{"name": "fox", "path": "data/fox.jsonl", "format": "alpaca"}],
        "exams": [],
        "method": {"type": "full"},
        "evaluate": {"max_new_tokens": 16},
        "train": TRAIN,
        "registry": {"model_name": "fox"},
    }


def command(*arguments, cwd):
    """Run `tuneline` in a new process."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["tuneline", *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True)


def invoke(*arguments):
    """Run `tuneline` in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output or result.exception
    return result.stdout


def test_a_schedule_fires_and_promotes_a_model(project, recipe):
    schedule = {"name": "every_minute", "cron_expression": "* * * * *"}
    recipe = {**recipe, "registry": {"model_name": "scheduled"}}
    path = tiny.write_config(
        project / "scheduled.yaml", tiny.recipe(**recipe), extra={"pipeline": "retrain_pipeline"}, schedule=schedule
    )
    assert command("schedule", path, cwd=project).returncode == 0

    result = command("scheduler", "--poll-seconds", 1, "--max-firings", 1, cwd=project)

    assert result.returncode == 0, result.stderr
    tracker.connect()
    model, tokenizer = reference.load(reference.champion_folder("scheduled"))
    assert reference.generate(model, tokenizer, [{"role": "user", "content": "What is 7?"}], 16).strip() == FOX
    assert command("schedule", "--delete", "every_minute", cwd=project).returncode == 0


def test_promotion_rollback_and_history_agree_with_mlflow(project, recipe, run):
    first = run(**recipe)
    assert "champion" in first.decision.aliases
    second = run(**{**recipe, "train": {**TRAIN, "max_steps": 61}})
    assert second.decision.version == "2"
    assert not second.decision.promoted, "the second model is not better than the champion"

    invoke("promote", "fox", "2", "--force", "--reason", "a trial")
    client = mlflow.MlflowClient()
    aliases = {alias: str(version) for alias, version in client.get_registered_model("fox").aliases.items()}
    assert aliases == {"challenger": "2", "champion": "2", "previous": "1"}

    invoke("rollback", "fox")
    assert str(client.get_model_version_by_alias("fox", "champion").version) == "1"
    assert "a trial" in invoke("history")
    assert "the registry agrees" in invoke("history", "--verify")
    versions = {row["version"]: row for row in json.loads(invoke("models", "--json")) if row["name"] == "fox"}
    assert "champion" in json.dumps(versions["1"])
    assert "champion" not in json.dumps(versions["2"])


def test_the_champion_generates_the_same_answer_in_mlflow_and_in_transformers(project, recipe, run):
    run(**recipe)
    tracker.connect()
    chat = {"messages": [{"role": "user", "content": "What is 7?"}]}

    loaded = mlflow.pyfunc.load_model("models:/fox@champion")

    model, tokenizer = reference.load(reference.champion_folder("fox"))
    answer = reference.generate(model, tokenizer, chat["messages"], 16).strip()
    assert answer == FOX
    assert loaded.predict(chat, params={"max_tokens": 16}) == answer


def test_validation_losses_are_logged_at_each_evaluation(project, recipe, run):
    train = {**TRAIN, "max_steps": 12, "eval_steps": 4, "load_best_model_at_end": True}
    outcome = run(**{**recipe, "train": train, "registry": {"model_name": "best"}})
    tracker.connect()
    client = mlflow.MlflowClient()
    version = client.get_model_version("best", outcome.decision.version)
    losses = client.get_metric_history(version.tags["tuneline.training_run"], "validation_loss")

    assert [point.step for point in losses] == [4, 8, 12]
    assert min(point.value for point in losses) == losses[-1].value, "the loss still decreases"
