"""Live curves reach MLflow, and MLflow never ends a training."""

import logging

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from tuneline.tracking import runs


@pytest.fixture(autouse=True)
def server(tmp_path, monkeypatch):
    """An empty MLflow, with a parent run open."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("runs")
    with mlflow.start_run():
        yield
    mlflow.set_tracking_uri(before)


def curve(run_id, name="loss"):
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run_id, name)]


def crashed() -> str:
    """Open a child, tell one step, and die."""
    try:
        with runs.start_training_run("first") as (run_id, tell):
            tell({"loss": 3.0}, 1)
            raise RuntimeError
    except RuntimeError:
        return run_id


def test_a_training_that_goes_on_draws_in_the_same_child():
    run_id = crashed()
    assert mlflow.get_run(run_id).info.status == "FAILED"

    with runs.start_training_run("second", resume_run_id=run_id) as (again, tell):
        tell({"loss": 2.0}, 2)

    assert again == run_id
    assert curve(run_id) == [(1, 3.0), (2, 2.0)]
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_child_that_is_gone_is_replaced():
    with runs.start_training_run("new", resume_run_id="0" * 32) as (run_id, _):
        assert mlflow.get_run(run_id).info.run_name == "new"


def test_figures_wait_while_mlflow_is_out_of_reach_and_arrive_later(monkeypatch, caplog):
    client = mlflow.MlflowClient.log_batch
    away = {"now": True}

    def log_batch(*given, **named):
        if away["now"]:
            raise MlflowException("connection refused")
        return client(*given, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_TRIES", 1e-9)
    with caplog.at_level(logging.WARNING), runs.start_training_run("it") as (run_id, tell):
        tell({"loss": 3.0}, 1)
        tell({"loss": 2.0}, 2)
        away["now"] = False
        tell({"loss": 1.0}, 3)

    assert curve(run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert caplog.text.count("MLflow cannot be reached (connection refused). Training continues") == 1


def test_what_never_arrived_is_counted(monkeypatch, caplog):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
    with caplog.at_level(logging.WARNING), runs.start_training_run("it") as (_, tell):
        tell({"loss": 3.0, "grad_norm": float("nan")}, 1)

    assert "could not be sent to MLflow: 1" in caplog.text
