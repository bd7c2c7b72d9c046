"""Checks before an expensive run: the tracking server responds and its registry accepts a model."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from tuneline import state, storage_errors
from tuneline.errors import TrackingError, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_SECONDS = 5.0
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
PROBE_FILE = "tuneline-check"
"""Test file that is written to a server's artifact store and deleted."""

UNFINISHED = ".unfinished-mlflow-"
"""Prefix of folders with unfinished tables; a killed process leaves one."""

NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
BUSY_SECONDS = 30.0
"""Time to wait for another process that locks the database."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check_reachable(uri: str) -> None:
    """Check that MLflow responds.

    Raises:
        TrackingError: The database cannot be opened, or the server does not respond within a few seconds.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        _check_sqlite(Path(uri.removeprefix("sqlite:///")))
    elif parts.scheme in ("http", "https"):
        _check_http(uri)


def _check_sqlite(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(path, timeout=BUSY_SECONDS) as database:
            database.execute("pragma schema_version")
    except (OSError, sqlite3.Error) as error:
        if translation := storage_errors.translate(error):
            raise translation from error
        raise TrackingError(f"MLflow's database {path} cannot be opened: {error}. {_advice(error)}") from error


def _advice(error: Exception) -> str:
    if isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode in DAMAGED:
        return "The file is damaged: restore it from a backup, or move it away and run `tuneline init`."
    return "Check that the file and its folder are readable and writable, then run again."


def _check_http(uri: str) -> None:
    import requests

    try:
        response = requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise TrackingError(
            f"MLflow does not respond at {uri} ({type(error).__name__}). Start the server, or select a stack with "
            "another tracker (`tuneline init --stack NAME`)."
        ) from error
    if response.status_code >= 500:
        raise TrackingError(
            f"MLflow at {uri} responds with status {response.status_code}. Fix the server, then run again."
        )


def create_schema(uri: str) -> None:
    """Create the tables of MLflow's tracker and registry, one process at a time, once MLflow uses `uri`.

    MLflow creates them without a lock, so that one of two concurrent first runs fails in its migrations, and tables
    left incomplete by a full disk or a signal stay incomplete. Therefore a new SQLite file is created separately and
    renamed when it is complete.

    Raises:
        DiskFullError: The disk is full.
        TrackingError: The tables belong to another version of MLflow, or cannot be created.
    """
    from alembic.util import CommandError
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if urlsplit(uri).scheme in ("http", "https"):
        return
    path = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    lock = FileLock(f"{path}.lock", timeout=600) if path else state.lock("mlflow")
    try:
        with lock:
            if path and not (path.exists() and path.stat().st_size):
                _create_complete(path)
            MlflowClient().search_experiments(max_results=1)
            MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, CommandError, SQLAlchemyError) as error:
        if translation := storage_errors.translate(error):
            raise translation from error
        raise TrackingError(
            f"MLflow's store {uri} cannot be opened: {one_line(error)} If it is locked, wait for the other "
            "process; if another version of MLflow created it, install that version, or make a backup and run "
            "`mlflow db upgrade`."
        ) from error


def _create_complete(path: Path) -> None:
    """Create MLflow's tables in a temporary file and rename it."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    for leftover in path.parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        SqlAlchemyStore(f"sqlite:///{scratch}").engine.dispose()
        scratch.replace(path)


def check_registry(experiments: Iterable[str] = ()) -> None:
    """Check that a registry on a server accepts a model: it responds, and its artifact store is writable.

    Args:
        experiments: Names of the experiments of the run; for one that does not exist yet, the default artifact location
            of the server is checked.

    Raises:
        TrackingError: The registry or its artifact store is not usable.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from tuneline.tracking import model_source

    if not model_source.is_served():
        return
    client, uri = MlflowClient(), mlflow.get_registry_uri()
    with _environment(NO_RETRIES):
        try:
            client.search_registered_models(max_results=1)
            locations = _artifact_locations(client, experiments)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"The model registry at {uri} does not respond: {one_line(error)} Start the server with "
                "its registry, and check your permissions."
            ) from error
        for location in sorted(locations):
            _check_artifacts(location, uri)


def _artifact_locations(client: "MlflowClient", experiments: Iterable[str]) -> set[str]:
    matches = [client.get_experiment_by_name(name) for name in experiments]
    if None in matches or not matches:
        matches.append(client.get_experiment_by_name("Default"))
    return {experiment.artifact_location for experiment in matches if experiment}


def _check_artifacts(location: str, uri: str) -> None:
    """Write a small file to the artifact store and delete it.

    Raises:
        TrackingError: It cannot be written, so a model could not be registered.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from tuneline.tracking import model_source

    folder = model_source.local_folder(location)
    is_remote = urlsplit(uri).hostname not in LOCAL_HOSTS  # a mounted folder exists before the first run
    if folder and is_remote and not any(path.is_dir() for path in (folder, folder.parent)):
        raise TrackingError(
            f"MLflow at {uri} stores artifacts in {folder}, a folder that is not on this machine, so no model can be "
            "registered from here. Start the server with --serve-artifacts (an existing experiment keeps its "
            "location: rename it), or mount the folder."
        )
    try:
        repository = get_artifact_repository(location)
        with tempfile.TemporaryDirectory() as scratch:
            probe = Path(scratch) / PROBE_FILE
            probe.write_text("Written by Tuneline to check that artifacts can be stored here; may be deleted.\n")
            repository.log_artifact(str(probe))
    except (MlflowException, OSError, ImportError) as error:
        raise TrackingError(
            f"MLflow at {uri} stores artifacts at {location}, which is not writable from here: "
            f"{one_line(error)} A model could not be registered. Start the server with --serve-artifacts, "
            "or give this machine write access."
        ) from error
    with contextlib.suppress(MlflowException, OSError, NotImplementedError):
        repository.delete_artifacts(PROBE_FILE)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
