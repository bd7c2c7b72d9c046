"""Models, model cards, runs and schedules for commands that only show them, without importing ZenML and MLflow.

Each function reads the embedded stack's SQLite files. Where the active stack keeps its records elsewhere, or where a
name is not found, it asks the clients of ZenML and MLflow, which also raise the errors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tuneline.errors import NotFoundError
from tuneline.tracking.sqlite_registry import SCHEMA, SqliteRegistry, VersionRow
from tuneline.zenml_integration import abandoned_runs, schedules, sqlite_store
from tuneline.zenml_integration.schedules import Schedule
from tuneline.zenml_integration.sqlite_store import UnsupportedStoreError

if TYPE_CHECKING:
    from tuneline.tracking.registry import Version

CARD = "model_card.md"
Result = TypeVar("Result")


class Models(NamedTuple):
    """Registered versions."""

    versions: "list[VersionRow] | list[Version]"
    num_omitted: int
    """Older versions without an alias that were left out, as far as they were read."""


def models(name: str | None, most: int | None) -> Models:
    """List versions, newest first: the newest, and older ones with an alias.

    Args:
        name: Registered model; None for all.
        most: Number of newest versions; None for all.

    Raises:
        NotFoundError: No model has that name.
        TrackingError: MLflow cannot be reached.
    """
    return _read_or_ask(lambda: _sqlite_models(name, most), lambda: _client_models(name, most))


def card(name: str, version: str) -> str:
    """Return the model card of a version.

    Raises:
        NotFoundError: No version has that number or alias.
        TrackingError: The run that made the version has no card, or MLflow cannot be reached.
    """
    return _read_or_ask(lambda: _sqlite_card(name, version), lambda: _client_card(name, version))


def runs(limit: int) -> list[dict[str, Any]]:
    """Return the newest runs, newest first; runs whose process was killed are marked as failed before."""
    return _read_or_ask(lambda: _sqlite_runs(limit), lambda: _client_runs(limit))


def list_schedules() -> list[Schedule]:
    """Return the schedules of the active stack."""
    return _read_or_ask(_sqlite_schedules, schedules.list_schedules)


def _read_or_ask(read: Callable[[], Result], ask_client: Callable[[], Result]) -> Result:
    try:
        return read()
    except UnsupportedStoreError:
        return ask_client()


@contextmanager
def _registry() -> Iterator[SqliteRegistry]:
    with (
        sqlite_store.open_store() as store,
        sqlite_store.open_database(store.mlflow_database(), SCHEMA) as database,
    ):
        registry = SqliteRegistry(database)
        if not registry.is_supported():
            raise UnsupportedStoreError("the registry has workspaces")
        yield registry


def _sqlite_models(name: str | None, most: int | None) -> Models:
    with _registry() as registry:
        if name and not registry.has_model(name):
            raise UnsupportedStoreError(f"no model {name}")
        return _drop_old(registry.recent(name, most + 1) if most else registry.versions(name), most)


def _client_models(name: str | None, most: int | None) -> Models:
    from tuneline.tracking import registry
    from tuneline.zenml_integration import tracker

    tracker.connect()
    if name and not registry.list_models(name):
        raise NotFoundError.among("model", name, list(registry.list_models())[: registry.MAX_LISTED])
    return _drop_old(registry.list_recent(name, most + 1) if most else registry.list_versions(name), most)


def _drop_old(versions: Any, most: int | None) -> Models:
    """Leave out older versions without an alias."""
    listed_versions = [version for i, version in enumerate(versions) if most is None or i < most or version.aliases]
    return Models(listed_versions, len(versions) - len(listed_versions))


def _sqlite_card(name: str, version: str) -> str:
    with _registry() as registry:
        row = registry.find(name, version)
        path: Path | None = registry.artifact(row.run_id, CARD) if row else None
        if path is None:
            raise UnsupportedStoreError(f"no model card of {name} {version}")
        return path.read_text()


def _client_card(name: str, version: str) -> str:
    from tuneline.tracking import registry, run_artifacts
    from tuneline.zenml_integration import tracker

    tracker.connect()
    return run_artifacts.load_card(registry.find_version(name, version))


def _sqlite_runs(limit: int) -> list[dict[str, Any]]:
    with sqlite_store.open_store() as store:
        if store.repository:
            store.artifact_folder()
    abandoned_runs.close()
    with sqlite_store.open_store() as store:
        return store.runs(limit)


def _client_runs(limit: int) -> list[dict[str, Any]]:
    from tuneline.runner import runs
    from tuneline.zenml_integration import stack

    if stack.is_ready():
        abandoned_runs.close()
    return runs.latest(limit)


def _sqlite_schedules() -> list[Schedule]:
    from datetime import UTC

    with sqlite_store.open_store() as store:
        return [Schedule(**row | {"created": row["created"].replace(tzinfo=UTC)}) for row in store.schedules()]
