"""A sweep: its runs share cached data steps and are children of one MLflow run."""

import mlflow
import pytest

from tests import tiny
from tuneline.config.experiments import sweep
from tuneline.runner import sweeps
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml


def test_six_runs_tokenize_once_and_are_children_of_one_run(project):
    recipe = tiny.write_config(project / "sweep.yaml", tiny.recipe(exams=[], registry={"model_name": "swept"}))
    outcomes = []

    result = sweeps.run(
        "sweep of tiny",
        sweep.build_settings(recipe, ["train.learning_rate=1e-4,1e-2"], 3),
        lambda name, outcome: outcomes.append(outcome),
    )

    statuses = [step.status for outcome in outcomes for step in outcome.steps if step.name == "tokenize_pack"]
    assert [status == "cached" for status in statuses] == [False] + [True] * 5
    assert {line.name for line in result.lines} == {"learning_rate 1e-4", "learning_rate 1e-2"}
    assert all(len(line.scores) == 3 for line in result.lines)
    tracker.connect()
    client = mlflow.MlflowClient()
    experiment = client.get_run(result.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{result.run_id}'")
    assert {run.info.run_name for run in children} == {outcome.run_name for outcome in outcomes}
    assert client.list_artifacts(result.run_id)[0].path == "sweep.html"
