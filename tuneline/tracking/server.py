"""Is the tracking server there? Asked before anything expensive starts."""

import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from tuneline import storage_errors
from tuneline.errors import TrackingError

TIMEOUT_SECONDS = 5.0
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
        if told := storage_errors.explain(error):
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
