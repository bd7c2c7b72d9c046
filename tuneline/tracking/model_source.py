"""Give a model registry a source that it accepts.

A registry that is a database on this machine takes any address, so versions point at the artifact store and nothing is
copied. One behind an MLflow server refuses the address of a folder (`Invalid model version source`) unless the folder
lies among the artifacts of the run that made it: there the files join the run's artifacts. They go over the network
where the run's artifacts do, and the version's source is `runs:/RUN/model`; where these lie in a folder of this machine
they become hard links in it, and the source is their own folder. Other addresses, like those of an object store, a
server takes as they are.
"""

import logging
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tuneline.errors import TrackingError, one_line

ARTIFACT = "model"
"""Folder among the artifacts of a run."""

LOCAL = ("", "file")
SERVED = ("http", "https")

logger = logging.getLogger(__name__)


def is_served() -> bool:
    """Whether the model registry stands behind a server."""
    return urlsplit(mlflow.get_registry_uri()).scheme in SERVED


def local_folder(uri: str) -> Path | None:
    """Return the folder that an address names; None where it names no folder of this machine."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in LOCAL else None


def resolve_source(source: str, run_id: str) -> str:
    """Return an address of a model directory that the registry accepts; uploads the files where there is none yet.

    Args:
        source: Address of the folder that holds `MLmodel`.
        run_id: MLflow run that made it.

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
            "behind a server takes only what lies there. Mend the server's artifact store, then run again: finished "
            "steps come from the cache."
        ) from error
    return f"runs:/{run_id}/{ARTIFACT}"


def _link(folder: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)  # what an interrupted try left
    shutil.copytree(folder, target, copy_function=_link_or_copy)
    return target


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
