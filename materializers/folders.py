"""Base of directory artifacts: written and read in place on a local store, uploaded and downloaded on a remote one.

Checksums are stored with the files. Files that are read are compared with the checksums, and the checksums with the
content hash that ZenML recorded. For a remote store, this machine keeps one copy per content
(`tuneline.artifact_cache`).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
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

MAX_CELL_CHARACTERS = 600
"""Characters of a value that a page shows."""

UNREADABLE = (OSError, ValueError, LookupError, TypeError, pa.ArrowException)
"""Errors of readers for damaged files of artifacts without checksums."""


class FolderMaterializer(BaseMaterializer):
    """Base class of materializers whose artifact is a directory."""

    SKIP_REGISTRATION = True
    _content_hash: str | None = None

    @abstractmethod
    def write(self, data: Any, folder: Path) -> None:
        """Write the files of an artifact."""

    @abstractmethod
    def read(self, data_type: type[Any], folder: Path) -> Any:
        """Read what `write` wrote."""

    @abstractmethod
    def content_hash_of(self, data: Any) -> str:
        """Compute the content hash of a value."""

    def stored_content_hash(self, data: Any, sums: Checksums | None) -> str | None:
        """Return the content hash of the artifact, from its verified checksums or from the values.

        None if neither is reliable: documents of an earlier version hash differently after a field was added.
        """
        return sums.content_hash if sums else None

    def save(self, data: Any) -> None:
        """Write the files and their checksums."""
        with self.writing() as folder:
            self.write(data, folder)
            checksums.write(folder, self.compute_content_hash(data), _step_name())

    def load(self, data_type: type[Any]) -> Any:
        """Compare the files with their checksums and read them.

        Raises:
            ArtifactError: A file is missing or changed.
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
        """Whether the artifact store is a directory on this machine."""
        return bool(self.artifact_store.config.is_local)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder to write to; for a remote store it is uploaded at the end."""
        if self.is_local:
            yield Path(self.uri)
            return
        with self.get_temporary_directory(delete_at_exit=True) as scratch:
            yield Path(scratch)
            io_utils.copy_dir(scratch, self.uri, overwrite=True)

    def reading(self) -> Path:
        """Return the folder to read from; for a remote store, the copy on this machine.

        Raises:
            ArtifactError: The downloaded files differ from the stored ones.
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

    def write_visualization(self, name: str, text: str) -> str:
        """Write a text next to the artifact and return its URI."""
        uri = f"{self.uri.rstrip('/')}/{name}"
        with self.artifact_store.open(uri, "w") as file:
            file.write(text)
        return uri


def _step_name() -> str:
    """Return the name of the running step, or an empty string outside of a step."""
    try:
        return get_step_context().step_run.name
    except RuntimeError:
        return ""
