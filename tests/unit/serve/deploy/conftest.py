"""A registry with small versions, and deployments with scripted engines."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import mlflow_store, tiny
from tests.unit.serve.deploy.scripted import Factory
from tuneline.config.sections.serve import ServeConfig
from tuneline.model import device
from tuneline.model.checkpoint import METADATA_FILE, Checkpoint
from tuneline.serve.deploy.deployment import RegistryDeployment
from tuneline.serve.deploy.prepare import Preparation
from tuneline.tracking import registry


@pytest.fixture(scope="module")
def run_id(tmp_path_factory) -> Iterator[str]:
    """A finished run in a separate MLflow store for the tests of a module."""
    with mlflow_store.finished_run(tmp_path_factory.mktemp("mlflow"), "serving") as run_id:
        yield run_id


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch) -> None:
    """Scripted engines have no weights to free, and a collection takes half a second here."""
    monkeypatch.setattr(device, "release_memory", lambda: None)


@pytest.fixture
def name(tmp_path) -> str:
    """Name of the test's registered model."""
    return tmp_path.name[:60].rstrip("-_")


@pytest.fixture
def make_version(run_id, home, tmp_path, tiny_model, name):
    """Register a tiny model with other weights per call; returns the version."""

    def make(seed: int, template: str | None = None, model: Path = tiny_model) -> registry.Version:
        folder = tmp_path / "versions" / str(seed)
        files = folder / "files"
        shutil.copytree(model, files)
        config = {"eos_token_id": 2, "seed_of_the_test": seed}
        (files / "generation_config.json").write_text(json.dumps(config))
        if template:
            (files / "chat_template.jinja").write_text(template)
        checkpoint = Checkpoint(files, "full")
        metadata = {"kind": "full", "identity": {}, "facts": {}, "sha256": checkpoint.content_hash()}
        (folder / METADATA_FILE).write_text(json.dumps({**metadata, "files": checkpoint.files()}))
        version, _ = registry.register(name, checkpoint.content_hash(), folder.as_uri(), run_id, {})
        return version

    return make


@pytest.fixture
def move(name):
    """Move an alias of the test's model."""

    def move_alias(version: registry.Version, alias: str = "champion") -> None:
        MlflowClient().set_registered_model_alias(name, alias, version.version)

    return move_alias


@pytest.fixture
def factory() -> Factory:
    """Makes scripted engines."""
    return Factory()


@pytest.fixture
def make_deployment(factory, home):
    """Build a deployment with scripted engines; the alias is followed by `refresh` only."""

    def make(model: str, *, available=1 << 60, verify=lambda served, located: "", **changes) -> RegistryDeployment:
        config = ServeConfig(**{"model": model, "follow": 0, "drain_seconds": 5, **changes})
        free = available if callable(available) else lambda: available
        return RegistryDeployment(config, Preparation(config, factory, verify), available_bytes=free)

    return make


@pytest.fixture
def own_model(tmp_path) -> Path:
    """A tiny model that a test may change."""
    return tiny.build_model(tmp_path / "own")
