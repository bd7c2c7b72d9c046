"""Is the tracking server there? Asked before anything expensive starts."""

import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from tuneline.errors import TrackingError

TIMEOUT_SECONDS = 5.0


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
        with sqlite3.connect(path) as database:
            database.execute("pragma schema_version")
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"MLflow's database {path} cannot be opened: {error}. Mend it, or run `tuneline init`."
        ) from error


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
