"""Source URIs of model versions that a registry accepts.

A registry in a local database accepts any URI, so versions point at the artifact store and nothing is copied. An MLflow
server rejects a local folder (`Invalid model version source`) unless it is among the artifacts of the run that produced
the model. There, the files are added to the artifacts of the run: uploaded if the artifacts are remote (the source is
`runs:/RUN/model`), hard-linked if they are in a folder of this machine (the source is that folder). A server accepts
other URIs, such as those of an object store, as they are.
"""

import logging
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tuneline import filesystem
from tuneline.errors import TrackingError, one_line

ARTIFACT = "model"
"""Folder of the model among the artifacts of a run."""

LOCAL = ("", "file")
SERVED = ("http", "https")

logger = logging.getLogger(__name__)


def is_served() -> bool:
    """Return whether the model registry is an MLflow server."""
    return urlsplit(mlflow.get_registry_uri()).scheme in SERVED


def local_folder(uri: str) -> Path | None:
    """Return the local folder of a URI; None for a remote URI."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in LOCAL else None


def resolve_source(source: str, run_id: str) -> str:
    """Return a URI of a model directory that the registry accepts; upload the files if necessary.

    Args:
        source: URI of the folder with `MLmodel`.
        run_id: MLflow run that produced it.

    Raises:
        TrackingError: The files cannot be uploaded.
    """
    folder = local_folder(source)
    if folder is None or not is_served():
        return source
    try:
        root = MlflowClient().get_run(run_id).info.artifact_uri
        root_folder = local_folder(root)
        if root_folder and folder.is_relative_to(root_folder):
            return source
        if root_folder:
            return _link(folder, root_folder / ARTIFACT).as_uri()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        logger.info("Uploading %.1f MB of the model to %s/%s", size / 1e6, root, ARTIFACT)
        MlflowClient().log_artifacts(run_id, str(folder), ARTIFACT)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{folder} could not be uploaded to the artifacts of MLflow run {run_id}: {one_line(error)} A registry "
            "on a server only accepts files there. Fix the artifact store of the server, then run again: finished "
            "steps are cached."
        ) from error
    return f"runs:/{run_id}/{ARTIFACT}"


def _link(folder: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)  # leftovers of an interrupted attempt
    shutil.copytree(folder, target, copy_function=filesystem.link_or_copy)
    return target
