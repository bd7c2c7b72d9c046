"""A pipeline that is run again after a crash resumes training in the same MLflow run and reaches the same weights."""

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


def test_a_failed_training_resumes_in_the_same_mlflow_run_and_reaches_the_same_weights(
    run, executed_steps, monkeypatch
):
    log_metrics, crashed_runs = runs.MetricBuffer.__call__, []

    def crash_once(self, figures, step):
        log_metrics(self, figures, step)
        if step == 5 and not crashed_runs:
            crashed_runs.append(self._run_id)
            raise RuntimeError("the machine crashed")

    monkeypatch.setattr(runs.MetricBuffer, "__call__", crash_once)
    with pytest.raises(RuntimeError, match="the machine crashed"):
        run(train=TRAIN)
    tracker.connect()
    assert mlflow.get_run(crashed_runs[0]).info.status == "FAILED"

    resumed = run(train=TRAIN)
    uninterrupted = run(train=TRAIN, use_cache=False)

    tracker.connect()
    report = report_of(resumed)
    assert "merge" not in executed_steps(resumed)
    assert report.decisions["resume"] == "resumed from step 4 of 7"
    assert report.mlflow_run_id == crashed_runs[0]
    assert mlflow.get_run(crashed_runs[0]).info.status == "FINISHED"
    logged_steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(crashed_runs[0], "loss")]
    assert set(logged_steps) == set(range(1, 8))
    assert not uninterrupted.decision.new
    assert uninterrupted.decision.version == resumed.decision.version


def test_training_state_is_kept_until_the_result_is_stored(run, monkeypatch):
    try_logging, crashes = runs.try_logging, []

    def crash_once(call):
        if not crashes:
            crashes.append(True)
            raise RuntimeError("the machine crashed")
        return try_logging(call)

    train = {"learning_rate": 2e-3, "max_steps": 5, "save_steps": 2}
    monkeypatch.setattr(runs, "try_logging", crash_once)
    with pytest.raises(RuntimeError, match="the machine crashed"):
        run(train=train)
    assert list(state.root().glob("training/*/checkpoint-4"))

    resumed = run(train=train)

    assert report_of(resumed).decisions["resume"] == "resumed from step 4 of 5"
    assert not list(state.root().glob("training/*"))
