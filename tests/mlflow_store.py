"""A separate MLflow store for the tests of a module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest


@contextmanager
def separate_store(folder: Path, experiment: str) -> Iterator[str]:
    """Use an MLflow store in a folder while the block runs; yields the id of its experiment."""
    with pytest.MonkeyPatch.context() as env:
        env.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield mlflow.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_tracking_uri(None)


@contextmanager
def finished_run(folder: Path, experiment: str) -> Iterator[str]:
    """Use an MLflow store in a folder while the block runs; yields the id of a finished run."""
    with separate_store(folder, experiment) as experiment_id:
        with mlflow.start_run(experiment_id=experiment_id) as run:
            pass
        yield run.info.run_id
