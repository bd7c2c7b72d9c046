"""Metrics of a training reach MLflow, and an unreachable MLflow never stops a training."""

import logging

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from tuneline.tracking import runs


@pytest.fixture(autouse=True)
def server(tmp_path, monkeypatch):
    """An empty MLflow store with an open parent run."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("runs")
    with mlflow.start_run():
        yield
    mlflow.set_tracking_uri(before)


def curve(run_id, name="loss"):
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run_id, name)]


def crash_training() -> str:
    """Open a child run, log one step, and raise an error."""
    try:
        with runs.start_training_run("first") as (run_id, log_metrics):
            log_metrics({"loss": 3.0}, 1)
            raise RuntimeError
    except RuntimeError:
        return run_id


def test_a_resumed_training_continues_its_child_run():
    run_id = crash_training()
    assert mlflow.get_run(run_id).info.status == "FAILED"

    with runs.start_training_run("second", resume_run_id=run_id) as (resumed_id, log_metrics):
        log_metrics({"loss": 2.0}, 2)

    assert resumed_id == run_id
    assert curve(run_id) == [(1, 3.0), (2, 2.0)]
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_deleted_child_run_is_replaced():
    with runs.start_training_run("new", resume_run_id="0" * 32) as (run_id, _):
        assert mlflow.get_run(run_id).info.run_name == "new"


def test_metrics_are_buffered_while_mlflow_is_unreachable(monkeypatch, caplog):
    real_log_batch = mlflow.MlflowClient.log_batch
    unreachable = {"now": True}

    def log_batch(*args, **kwargs):
        if unreachable["now"]:
            raise MlflowException("connection refused")
        return real_log_batch(*args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_TRIES", 1e-9)
    with caplog.at_level(logging.WARNING), runs.start_training_run("it") as (run_id, log_metrics):
        log_metrics({"loss": 3.0}, 1)
        log_metrics({"loss": 2.0}, 2)
        unreachable["now"] = False
        log_metrics({"loss": 1.0}, 3)

    assert curve(run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert caplog.text.count("MLflow cannot be reached (connection refused). Training continues") == 1


def test_lost_metrics_are_counted(monkeypatch, caplog):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
    with caplog.at_level(logging.WARNING), runs.start_training_run("it") as (_, log_metrics):
        log_metrics({"loss": 3.0, "grad_norm": float("nan")}, 1)

    assert "could not be sent to MLflow: 1" in caplog.text
