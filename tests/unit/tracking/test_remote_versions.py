"""Files of versions in a remote store are downloaded once and equal the registered artifact."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest

from tests import tiny
from tuneline import artifact_cache, checksums, state
from tuneline.errors import ArtifactError, TrackingError
from tuneline.model.checkpoint import METADATA_FILE, Checkpoint
from tuneline.tracking import integrity, registry

pytestmark = pytest.mark.usefixtures("own_server", "home")


@pytest.fixture
def artifact(tmp_path):
    """A stored model."""
    tiny.store_model(tmp_path / "artifact", "weights")
    (tmp_path / "artifact" / "MLmodel").write_text("")
    return tmp_path / "artifact"


@pytest.fixture
def register(tmp_path, artifact):
    """Register the artifact by a remote URI, as on a server."""

    def make(*, with_checksums=True):
        content = json.loads((artifact / METADATA_FILE).read_text())["sha256"]
        if with_checksums:
            checksums.write(artifact, content, "merge_adapter")
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(artifact), "model")
        return registry.register(tmp_path.name, content, f"runs:/{run.info.run_id}/model", run.info.run_id, {})[0]

    return make


@pytest.fixture
def transfers(monkeypatch):
    """Count the downloads of whole folders."""
    real, calls = mlflow.artifacts.download_artifacts, []

    def download(uri, *args, **kwargs):
        if not uri.endswith(checksums.FILE):
            calls.append(uri)
        return real(uri, *args, **kwargs)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    return calls


@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_version_is_downloaded_once(register, transfers, with_checksums):
    version = register(with_checksums=with_checksums)

    folder = version.folder()

    assert folder == version.folder() == integrity.verified_folder(version, full=True)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert Checkpoint(folder, "full").content_hash() == version.content_hash
    assert folder.is_relative_to(state.root() / "downloads")
    assert len(transfers) == 1


def test_the_artifact_and_the_version_share_a_copy(register, artifact, transfers):
    version = register()
    key = artifact_cache.artifact_key((artifact / checksums.FILE).read_text())

    def fetch(folder):
        shutil.copytree(artifact, folder, dirs_exist_ok=True)

    assert version.folder().parent == artifact_cache.cached_folder(key, fetch, checksums.check)
    assert len(transfers) == 1


def remote_folder(version):
    """Return the remote folder of the files."""
    return Path(urlsplit(mlflow.get_run(version.run_id).info.artifact_uri).path) / "model"


def test_damaged_remote_files_are_reported(register):
    version = register()
    (remote_folder(version) / "files" / "model.safetensors").write_text("Weights")

    with pytest.raises(ArtifactError, match=r"model.safetensors has the sha256"):
        version.folder()


def test_missing_remote_files_are_reported(register):
    version = register()
    shutil.rmtree(remote_folder(version))

    with pytest.raises(TrackingError, match=r"cannot be downloaded from runs:/"):
        version.folder()
    assert not list((state.root() / "downloads").glob("*/"))
