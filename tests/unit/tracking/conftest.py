"""Fixtures of the tracking tests."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests import tiny
from tuneline.tracking import registry


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate MLflow store for the tests of a module."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        artifacts = (folder / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("tests", artifact_location=artifacts))
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def run_id(tmp_path_factory):
    """A finished run in a separate MLflow store for the tests of a module."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment = mlflow.create_experiment("promotion", artifact_location=(folder / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            pass
        yield run.info.run_id
        mlflow.set_tracking_uri(None)


@pytest.fixture
def make_version(run_id, home, tmp_path):
    """Register a model directory under a name that is unique per test; returns the version and whether it is new."""

    def make(content):
        folder = tmp_path / f"m {content}"
        sha256 = tiny.store_model(folder, content)
        return registry.register(tmp_path.name, sha256, folder.as_uri(), run_id, {"zenml.run": f"run of {content}"})

    return make
