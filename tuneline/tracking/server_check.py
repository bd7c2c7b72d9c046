"""Is the tracking server there, and will its registry take a model? Asked before anything expensive starts."""

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
"""File that is written among a server's artifacts, and deleted again."""

UNFINISHED = ".unfinished-mlflow-"
"""What the name of a folder with half-made tables begins with; a killed process leaves one."""

NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
BUSY_SECONDS = 30.0
"""How long another process may hold the database before that is an error."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check_reachable(uri: str) -> None:
    """Look whether MLflow answers.

    Raises:
        TrackingError: The database cannot be opened, or the server does not answer within a few seconds.
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
        if told := storage_errors.translate(error):
            raise told from error
        raise TrackingError(f"MLflow's database {path} cannot be opened: {error}. {_advice(error)}") from error


def _advice(error: Exception) -> str:
    if isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode in DAMAGED:
        return "Its bytes are damaged: restore it from a backup, or move it away and run `tuneline init`."
    return "Check that the file and its folder can be read and written, then run again."


def _check_http(uri: str) -> None:
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise TrackingError(
            f"MLflow does not answer at {uri} ({type(error).__name__}). Start the server, or choose a stack with "
            "another "
            "tracker (`tuneline init --stack NAME`)."
        ) from error
    if answer.status_code >= 500:
        raise TrackingError(
            f"MLflow at {uri} answers with status {answer.status_code}. Mend the server, then run again."
        )


def create_schema(uri: str) -> None:
    """Make the tables of MLflow's tracker and registry, one process at a time; call it once MLflow points at `uri`.

    MLflow's registry makes them without a lock, so that of two first runs one dies inside its migrations; and tables
    that a full disk or a signal left half made would stay so: a new SQLite file is made beside and moved when whole.

    Raises:
        DiskFullError: There is no space for them.
        TrackingError: The tables are those of another version of MLflow, or cannot be made.
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
                _make_whole(path)
            MlflowClient().search_experiments(max_results=1)
            MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, CommandError, SQLAlchemyError) as error:
        if told := storage_errors.translate(error):
            raise told from error
        raise TrackingError(
            f"MLflow's store {uri} cannot be opened: {one_line(error)} If it is locked, wait for the other "
            "process; if another version of MLflow made it, install that one, or take a backup and run `mlflow db "
            "upgrade`."
        ) from error


def _make_whole(path: Path) -> None:
    """Make MLflow's tables in a file beside, and move it to its place."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        SqlAlchemyStore(f"sqlite:///{scratch}").engine.dispose()
        scratch.replace(path)


def check_registry(experiments: Iterable[str] = ()) -> None:
    """Ask whether a registry behind a server will take a model: it must answer, and its artifacts must be writable.

    Args:
        experiments: Names of the experiments that runs will belong to; for one that is not there yet the server's own
            place for artifacts counts.

    Raises:
        TrackingError: It would refuse, or the model's files could not be uploaded.
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
            places = _artifact_places(client, experiments)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"The model registry at {uri} does not answer: {one_line(error)} Start the server with "
                "its registry, and check your permissions."
            ) from error
        for place in sorted(places):
            _check_artifacts(place, uri)


def _artifact_places(client: "MlflowClient", experiments: Iterable[str]) -> set[str]:
    found = [client.get_experiment_by_name(name) for name in experiments]
    if None in found or not found:
        found.append(client.get_experiment_by_name("Default"))
    return {each.artifact_location for each in found if each}


def _check_artifacts(place: str, uri: str) -> None:
    """Write a small file where runs keep their artifacts, and delete it.

    Raises:
        TrackingError: It cannot be written, so that a model could not be registered either.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from tuneline.tracking import model_source

    folder = model_source.local_folder(place)
    elsewhere = (
        urlsplit(uri).hostname not in LOCAL_HOSTS
    )  # a mounted folder is there before the first run of an experiment
    if folder and elsewhere and not any(each.is_dir() for each in (folder, folder.parent)):
        raise TrackingError(
            f"MLflow at {uri} keeps artifacts in {folder}, a folder that is not on this machine, so that no model can "
            "be registered from here. Start the server with --serve-artifacts (an existing experiment keeps its "
            "place: rename it), or mount the folder."
        )
    try:
        repository = get_artifact_repository(place)
        with tempfile.TemporaryDirectory() as scratch:
            probe = Path(scratch) / PROBE_FILE
            probe.write_text("Written by Tuneline to see whether artifacts can be kept here; may be deleted.\n")
            repository.log_artifact(str(probe))
    except (MlflowException, OSError, ImportError) as error:
        raise TrackingError(
            f"MLflow at {uri} keeps artifacts at {place}, where nothing can be written from here: "
            f"{one_line(error)} A model could not be registered. Start the server with --serve-artifacts, "
            "or give this machine what it takes to write there."
        ) from error
    with contextlib.suppress(MlflowException, OSError, NotImplementedError):
        repository.delete_artifacts(PROBE_FILE)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
