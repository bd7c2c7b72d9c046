"""What tests of the tracker share."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow of our own, which lives as long as a module's tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        artifacts = (folder / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("tests", artifact_location=artifacts))
        yield folder
        mlflow.set_tracking_uri(None)
