"""Reads runs, schedules and the active stack from ZenML's SQLite store by SQL.

Importing ZenML's client and opening its store takes seconds of CPU time, which commands that only list something do not
need. Environment variables, servers and migrations that ZenML's client handles are not supported here: `open_store`
raises `UnsupportedStoreError`, and the caller uses the client (`tuneline.runner.listings`).
"""

import base64
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import yaml

SCHEMA = "0.98.0"
"""Revision of the tables that this module reads."""

OVERRIDES = ("ZENML_ACTIVE_", "ZENML_STORE_", "ZENML_SERVER", "ZENML_DEFAULT_", "MLFLOW_REGISTRY_URI")
"""Prefixes of environment variables that select another store, stack, project or registry."""

SQLITE = "sqlite:///"
MLFLOW_DATABASE = "mlflow.db"
"""Database of ZenML's MLflow tracker without a URI, in the local artifact store."""

BUSY_SECONDS = 10.0


class UnsupportedStoreError(Exception):
    """The store is not a SQLite file of the known schema, or lacks the requested entry."""


@dataclass(frozen=True)
class Component:
    """A component of the active stack."""

    id: str
    flavor: str
    configuration: dict[str, Any]


@dataclass(frozen=True)
class SqliteStore:
    """An open store."""

    database: sqlite3.Connection
    project_id: str
    stack_id: str
    repository: Path | None
    """Folder whose stack is active; None for the user's default stack."""

    def component(self, kind: str) -> Component:
        """Return a component of the active stack, such as `artifact_store`."""
        rows = self.database.execute(
            "select c.id, c.flavor, c.configuration from stack_component c join stack_composition s "
            "on s.component_id = c.id where s.stack_id = ? and c.type = ?",
            (self.stack_id, kind),
        ).fetchall()
        if len(rows) != 1:
            raise UnsupportedStoreError(f"{len(rows)} components of type {kind}")
        (id_, flavor, configuration) = rows[0]
        return Component(id_, flavor, json.loads(base64.b64decode(configuration)))

    def artifact_folder(self) -> Path:
        """Return the folder of a local artifact store."""
        store = self.component("artifact_store")
        path = Path(str(store.configuration.get("path") or ""))
        if store.flavor != "local" or not path.is_absolute() or not path.is_dir():
            raise UnsupportedStoreError("no local artifact store")
        return path

    def mlflow_database(self) -> Path:
        """Return the SQLite file of the MLflow tracker."""
        tracker = self.component("experiment_tracker")
        if tracker.flavor != "mlflow" or tracker.configuration.get("tracking_uri"):
            raise UnsupportedStoreError("no MLflow tracker on the artifact store")
        return self.artifact_folder() / MLFLOW_DATABASE

    def runs(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest runs of the project, newest first, as `tuneline.runner.runs.latest` does."""
        rows = self.database.execute(
            "select r.id, r.name, p.name, r.status, r.start_time, r.end_time from pipeline_run r "
            "left join pipeline p on p.id = r.pipeline_id where r.project_id = ? "
            "order by r.created desc, r.id asc limit ?",
            (self.project_id, limit),
        ).fetchall()
        return [self._run(*row) for row in rows]

    def _run(
        self, id_: str, name: str, pipeline: str | None, status: str, start: str | None, end: str | None
    ) -> dict[str, Any]:
        steps = self.database.execute(
            "select name, status from step_run where pipeline_run_id = ? order by version", (id_,)
        ).fetchall()
        statuses = list(dict(steps).values())  # the last version of each step
        started, ended = (datetime.fromisoformat(text) if text else None for text in (start, end))
        return {
            "name": name,
            "pipeline": pipeline,
            "status": status,
            "started": started.isoformat() if started else None,
            "seconds": (ended - started).total_seconds() if started and ended else None,
            "steps_cached": statuses.count("cached"),
            "steps_run": len(statuses) - statuses.count("cached"),
            "id": str(UUID(id_)),
        }

    def schedules(self) -> Iterator[dict[str, Any]]:
        """Yield the schedules of the active stack's orchestrator, with the fields of `schedules.Schedule`."""
        rows = self.database.execute(
            "select id, name, cron_expression, active, created, pipeline_id from schedule "
            "where project_id = ? and orchestrator_id = ? and not is_archived order by created, id",
            (self.project_id, self.component("orchestrator").id),
        )
        for id_, name, cron, active, created, pipeline_id in rows:
            yield {
                "id": str(UUID(id_)),
                "name": name,
                "cron_expression": cron or "",
                "active": bool(active),
                "created": datetime.fromisoformat(created),
                "pipeline_id": str(UUID(pipeline_id)) if pipeline_id else "None",
            }


@contextmanager
def open_store() -> Iterator[SqliteStore]:
    """Open the store that ZenML's client would open, for reading.

    Raises:
        UnsupportedStoreError: It is another kind of store, or cannot be read in this way.
    """
    if override := next((name for name in os.environ if name.startswith(OVERRIDES)), None):
        raise UnsupportedStoreError(f"{override} is set")
    try:
        user, repository = _user_configuration(), _repository()
        url = str((user.get("store") or {}).get("url"))
        if not url.startswith(SQLITE):
            raise UnsupportedStoreError(f"the store is {url}")
        active = user | (_yaml(repository / ".zen" / "config.yaml") if repository else {})
        project_id, stack_id = (UUID(str(active[key])).hex for key in ("active_project_id", "active_stack_id"))
        with open_database(Path(url.removeprefix(SQLITE)), SCHEMA) as database:
            yield SqliteStore(database, project_id, stack_id, repository)
    except (OSError, sqlite3.Error, yaml.YAMLError, ValueError, LookupError, TypeError) as error:
        raise UnsupportedStoreError(str(error)) from error


@contextmanager
def open_database(path: Path, revision: str) -> Iterator[sqlite3.Connection]:
    """Open a SQLite file with Alembic tables, read-only.

    Raises:
        UnsupportedStoreError: The tables have another revision.
        sqlite3.Error: It cannot be read.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database:
        revisions = database.execute("select version_num from alembic_version").fetchall()
        if revisions != [(revision,)]:
            raise UnsupportedStoreError(f"{path} has revision {revisions}, expected {revision}")
        yield database


def _user_configuration() -> dict[str, Any]:
    folder = os.environ.get("ZENML_CONFIG_PATH") or click.get_app_dir("zenml")
    return _yaml(Path(folder) / "config.yaml")


def _repository() -> Path | None:
    if explicit := os.environ.get("ZENML_REPOSITORY_PATH"):
        return Path(explicit) if (Path(explicit) / ".zen").is_dir() else None
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".zen").is_dir()), None)


def _yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UnsupportedStoreError(f"{path} is not a mapping")
    return content
