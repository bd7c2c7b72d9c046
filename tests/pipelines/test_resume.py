"""A pipeline whose training died, run again: the training goes on in the same MLflow run, to the same weights."""

import mlflow
import pytest

from tuneline import state
from tuneline.tracking import runs
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

TRAIN = {"learning_rate": 1e-3, "max_steps": 7, "save_steps": 2}


def report_of(outcome):
    from zenml.client import Client

    outputs = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs
    return outputs["sft_training_report"][0].load()


def test_the_failed_step_goes_on_in_the_same_run_to_the_same_weights(run, ran, monkeypatch):
    plain, died = runs.MetricBuffer.__call__, []

    def die_once(self, figures, step):
        plain(self, figures, step)
        if step == 5 and not died:
            died.append(self._run_id)
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(runs.MetricBuffer, "__call__", die_once)
    with pytest.raises(RuntimeError, match="the machine went away"):
        run(train=TRAIN)
    tracker.connect()
    assert mlflow.get_run(died[0]).info.status == "FAILED"

    resumed = run(train=TRAIN)
    undisturbed = run(train=TRAIN, use_cache=False)

    tracker.connect()
    report = report_of(resumed)
    assert "merge" not in ran(resumed)
    assert report.decisions["resume"] == "resumed from step 4 of 7"
    assert report.mlflow_run_id == died[0]
    assert mlflow.get_run(died[0]).info.status == "FINISHED"
    drawn = [metric.step for metric in mlflow.MlflowClient().get_metric_history(died[0], "loss")]
    assert set(drawn) == set(range(1, 8))
    assert not undisturbed.decision.new
    assert undisturbed.decision.version == resumed.decision.version


def test_a_training_is_kept_until_its_result_is_stored(run, monkeypatch):
    attempt, died = runs.try_logging, []

    def die_once(call):
        if not died:
            died.append(True)
            raise RuntimeError("the machine went away")
        return attempt(call)

    train = {"learning_rate": 2e-3, "max_steps": 5, "save_steps": 2}
    monkeypatch.setattr(runs, "try_logging", die_once)
    with pytest.raises(RuntimeError, match="the machine went away"):
        run(train=train)
    assert list(state.root().glob("training/*/checkpoint-4"))

    resumed = run(train=train)

    assert report_of(resumed).decisions["resume"] == "resumed from step 4 of 5"
    assert not list(state.root().glob("training/*"))
