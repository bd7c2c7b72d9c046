"""What directory artifacts share: on a local store the files are written and read in place; elsewhere they travel.

Checksums are written beside the files. What is read is compared with them, and they with the content hash that ZenML
recorded. Of a remote store, one copy for the same content is kept on this machine (`tuneline.artifact_cache`).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
from zenml import get_step_context
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.utils import io_utils

from tuneline import artifact_cache, checksums
from tuneline.checksums import Checksums
from tuneline.errors import ArtifactError, TunelineError
from tuneline.identity import digest
from tuneline.storage_errors import is_full
from tuneline.zenml_integration import artifact_checks

UNREADABLE = (OSError, ValueError, LookupError, TypeError, pa.ArrowException)
"""What readers raise on files that were damaged before there were checksums."""


class FolderMaterializer(BaseMaterializer):
    """Base of materializers whose artifact is a directory."""

    SKIP_REGISTRATION = True
    _content_hash: str | None = None

    @abstractmethod
    def write(self, data: Any, folder: Path) -> None:
        """Write the files of an artifact."""

    @abstractmethod
    def read(self, data_type: type[Any], folder: Path) -> Any:
        """Open what `write` wrote."""

    @abstractmethod
    def content_hash_of(self, data: Any) -> str:
        """Compute the content hash of a value."""

    def stored_content_hash(self, data: Any, sums: Checksums | None) -> str | None:
        """Return the content hash of what was read, from checksums that were just compared or from the values.

        None where neither tells it: documents of an earlier version hash differently after a field was added.
        """
        return sums.content_hash if sums else None

    def save(self, data: Any) -> None:
        """Write the files and their checksums."""
        with self.writing() as folder:
            self.write(data, folder)
            checksums.write(folder, self.compute_content_hash(data), _step_name())

    def load(self, data_type: type[Any]) -> Any:
        """Open the files once they were compared with their checksums.

        Raises:
            ArtifactError: A file is missing or was changed.
        """
        try:
            folder = self.reading()
            sums = checksums.check(folder)
            data = self._open(data_type, folder)
            artifact_checks.compare_hashes(self.uri, self.stored_content_hash(data, sums), self.expected_content_hash)
        except ArtifactError as error:
            raise ArtifactError(f"{error} {artifact_checks.recompute_hint(self.uri)}") from error
        return data

    def _open(self, data_type: type[Any], folder: Path) -> Any:
        try:
            return self.read(data_type, folder)
        except TunelineError:
            raise
        except UNREADABLE as error:
            if is_full(error):
                raise
            raise ArtifactError(f"{folder} cannot be read: {type(error).__name__}: {error}.") from error

    def compute_content_hash(self, data: Any) -> str:
        """Compute the content hash once."""
        if self._content_hash is None:
            self._content_hash = self.content_hash_of(data)
        return self._content_hash

    @property
    def is_local(self) -> bool:
        """Whether the artifact store is a plain directory of this machine."""
        return bool(self.artifact_store.config.is_local)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder to write into; on a remote store it is uploaded afterwards."""
        if self.is_local:
            yield Path(self.uri)
            return
        with self.get_temporary_directory(delete_at_exit=True) as scratch:
            yield Path(scratch)
            io_utils.copy_dir(scratch, self.uri, overwrite=True)

    def reading(self) -> Path:
        """Return the folder to read from; of a remote store, the copy on this machine.

        Raises:
            ArtifactError: What was downloaded is not what was stored.
        """
        if self.is_local:
            return Path(self.uri)
        text = artifact_checks.read_remote_text(self.uri, checksums.FILE, self.artifact_store)
        if text is None and not self.artifact_store.exists(self.uri):
            raise ArtifactError(f"{self.uri} is missing.")
        return artifact_cache.cached_folder(
            artifact_cache.artifact_key(text) if text else digest([self.uri, self.expected_content_hash]),
            lambda folder: io_utils.copy_dir(self.uri, str(folder), overwrite=True),
            checksums.check,
        )

    def keep_text(self, name: str, text: str) -> str:
        """Write a text beside the artifact and return its address."""
        address = f"{self.uri.rstrip('/')}/{name}"
        with self.artifact_store.open(address, "w") as file:
            file.write(text)
        return address


def _step_name() -> str:
    """Return the name of the step that runs, or an empty text outside of one."""
    try:
        return get_step_context().step_run.name
    except RuntimeError:
        return ""


def table_html(title: str, rows: list[dict[str, Any]]) -> str:
    """Write rows as a small page."""
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row[name])[:600])}</td>" for name in names) + "</tr>" for row in rows
    )
    style = "body{font:14px system-ui;margin:2em}td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top}"
    return (
        "<!doctype html><meta "
        f"charset=utf-8><title>{escape(title)}</title><style>{style}table{{border-collapse:collapse}}"
        f"</style><h1>{escape(title)}</h1><table><tr>{head}</tr>{body}</table>"
    )
