"""Pipelines with an MLflow server that stores runs, models and artifacts."""

import os

import mlflow
import pytest

from tests import mlflow_server
from tuneline.errors import TrackingError
from tuneline.tracking import integrity, registry

pytestmark = [pytest.mark.zenml, pytest.mark.slow]


def use_server(uri):
    """Activate a stack whose tracker is a server; its other components are those of the embedded stack."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    from tuneline.zenml_integration import stack

    client = Client()
    parts = client.active_stack_model.components
    configuration = {"tracking_uri": uri, "tracking_token": "unused"}
    tracker = client.create_stack_component("served", "mlflow", Kind.EXPERIMENT_TRACKER, configuration)
    components = {kind: parts[kind][0].id for kind in (Kind.ORCHESTRATOR, Kind.ARTIFACT_STORE, Kind.MODEL_REGISTRY)}
    client.create_stack("served", {**components, Kind.EXPERIMENT_TRACKER: tracker.id})
    stack.init("served")


def test_models_are_registered_found_and_loaded_through_a_server(project, run, tmp_path, monkeypatch):
    from tuneline.zenml_integration import tracker

    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)
    with mlflow_server.running(tmp_path, "--artifacts-destination", str(tmp_path / "stored")) as uri:
        use_server(uri)
        assert tracker.connect_to_registry("sft_pipeline") == uri

        first = run(registry={"model_name": "served"})
        second = run(registry={"model_name": "served"}, train={"learning_rate": 1e-3, "max_steps": 3})

        tracker.connect()
        assert (first.decision.version, first.decision.new) == ("1", True)
        assert (second.decision.version, second.decision.new) == ("2", True)
        version = registry.find_version("served", "challenger")
        assert version.version == "2"
        assert version.source.startswith("runs:/")
        assert (integrity.verified_folder(version) / "model.safetensors").read_bytes() == (
            second.model_folder / "model.safetensors"
        ).read_bytes()
        answer = mlflow.pyfunc.load_model("models:/served@challenger").predict(
            {"messages": [{"role": "user", "content": "What is 1 and 1?"}]}, params={"max_tokens": 2}
        )
        assert isinstance(answer, str)
    with pytest.raises(TrackingError, match="does not respond"):
        tracker.connect()
    mlflow.set_tracking_uri(None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.setenv(name, "")  # removes what ZenML left in the environment
        monkeypatch.delenv(name)
