"""Fixtures of the tracking tests."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests import mlflow_store, tiny
from tuneline.tracking import registry


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate MLflow store for the tests of a module."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_store.separate_store(folder, "tests") as experiment_id:
        mlflow.set_experiment(experiment_id=experiment_id)
        yield folder


@pytest.fixture(scope="module")
def run_id(tmp_path_factory):
    """A finished run in a separate MLflow store for the tests of a module."""
    with mlflow_store.finished_run(tmp_path_factory.mktemp("mlflow"), "promotion") as run_id:
        yield run_id


@pytest.fixture
def make_version(run_id, home, tmp_path):
    """Register a model directory under a name that is unique per test; returns the version and whether it is new."""

    def make(content):
        folder = tmp_path / f"m {content}"
        sha256 = tiny.store_model(folder, content)
        return registry.register(tmp_path.name, sha256, folder.as_uri(), run_id, {"zenml.run": f"run of {content}"})

    return make
