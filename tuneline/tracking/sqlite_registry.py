"""Reads versions and model cards from MLflow's SQLite database by SQL, for commands that only list.

Importing MLflow takes seconds of CPU time. For other stores and for writes, use `tuneline.tracking.registry`.
"""

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

SCHEMA = "dc11669786a5"
"""Alembic revision of the tables that this module reads."""

WORKSPACE = "default"
WORKSPACE_VARIABLES = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE")
MAX_VERSION_DIGITS = 18
"""Maximum number of digits of a version number, which must fit into a database integer."""

COLUMNS = "name, version, source, run_id"
VERSIONS = f"select {COLUMNS} from model_versions where workspace = ? and current_stage != 'Deleted_Internal'"
CONTENT_HASH = "tuneline.content_hash"


class VersionRow(NamedTuple):
    """A registered version, with the fields of `tuneline.tracking.registry.Version`."""

    name: str
    version: str
    aliases: tuple[str, ...]
    content_hash: str
    source: str
    run_id: str
    tags: dict[str, str]


@dataclass(frozen=True)
class SqliteRegistry:
    """The registry in an open database."""

    database: sqlite3.Connection

    def is_supported(self) -> bool:
        """Return whether all models are in MLflow's default workspace."""
        foreign = self.database.execute("select 1 from registered_models where workspace != ? limit 1", (WORKSPACE,))
        return foreign.fetchone() is None and not any(map(os.environ.get, WORKSPACE_VARIABLES))

    def has_model(self, name: str) -> bool:
        """Return whether a model of that name is registered."""
        query = "select 1 from registered_models where workspace = ? and name = ?"
        return self.database.execute(query, (WORKSPACE, name)).fetchone() is not None

    def versions(self, name: str | None = None, most: int | None = None) -> list[VersionRow]:
        """List versions of one model or of all models, newest first."""
        condition, values = (" and name = ?", [name]) if name else ("", [])
        query = f"{VERSIONS}{condition} order by version desc, name asc limit ?"
        return self._rows(self.database.execute(query, (WORKSPACE, *values, most if most is not None else -1)))

    def recent(self, name: str | None, most: int) -> list[VersionRow]:
        """List the newest versions, then older versions with an alias, of one model or of all models."""
        newest = self.versions(name, most)
        listed = {(row.name, row.version) for row in newest}
        with_alias = {(model, version) for model, version, _ in self._aliases() if name in (None, model)}
        older = [self.find(*key) for key in sorted(with_alias - listed)]
        return newest + [row for row in older if row]

    def find(self, name: str, version_or_alias: str) -> VersionRow | None:
        """Return a version by number or alias, or None."""
        number = version_or_alias
        if not (number.isdecimal() and len(number) <= MAX_VERSION_DIGITS):
            query = "select version from registered_model_aliases where workspace = ? and name = ? and alias = ?"
            row = self.database.execute(query, (WORKSPACE, name, version_or_alias)).fetchone()
            if row is None:
                return None
            number = str(row[0])
        rows = self.database.execute(f"{VERSIONS} and name = ? and version = ?", (WORKSPACE, name, int(number)))
        return next(iter(self._rows(rows)), None)

    def artifact(self, run_id: str, name: str) -> Path | None:
        """Return a file that a run logged; None if it is not on this machine."""
        row = self.database.execute("select artifact_uri from runs where run_uuid = ?", (run_id,)).fetchone()
        parts = urlsplit(row[0] if row else "none:")
        if parts.scheme not in ("", "file") or parts.netloc:
            return None
        path = Path(unquote(parts.path)) / name
        return path if path.is_file() else None

    def _rows(self, rows: Iterable[tuple[Any, ...]]) -> list[VersionRow]:
        aliases: dict[tuple[str, str], list[str]] = {}
        for model, version, alias in self._aliases():
            aliases.setdefault((model, version), []).append(alias)
        return [
            self._row(name, str(version), source, run_id, aliases.get((name, str(version)), []))
            for name, version, source, run_id in rows
        ]

    def _row(
        self, name: str, version: str, source: str | None, run_id: str | None, aliases: Iterable[str]
    ) -> VersionRow:
        query = "select key, value from model_version_tags where workspace = ? and name = ? and version = ?"
        tags = dict(self.database.execute(query, (WORKSPACE, name, int(version))).fetchall())
        content_hash = tags.get(CONTENT_HASH, "")
        return VersionRow(name, version, tuple(sorted(aliases)), content_hash, source or "", run_id or "", tags)

    def _aliases(self) -> list[tuple[str, str, str]]:
        """Return model, version and alias of every alias."""
        query = "select name, version, alias from registered_model_aliases where workspace = ?"
        return [(name, str(number), alias) for name, number, alias in self.database.execute(query, (WORKSPACE,))]
