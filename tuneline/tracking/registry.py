"""Versions in the MLflow model registry, identified by content hash, number or alias.

On a local store their files are never copied; see `tuneline.tracking.model_source` for a registry on a server. Look-ups
query a number, alias or content hash, so their cost does not grow with the number of versions.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from tuneline import artifact_cache, checksums, owner, state
from tuneline.errors import NotFoundError, TrackingError, one_line
from tuneline.identity import digest
from tuneline.tracking import model_source
from tuneline.tracking.flavor import FILES

CONTENT_HASH_TAG = "tuneline.content_hash"
ALIASES = ("challenger", "champion", "previous")
MAX_LISTED = 20
"""Maximum number of names in an error message."""

MAX_VERSION_DIGITS = 18
"""Maximum number of digits of a version number, which must fit into a database integer."""

SERVING_FILES = {
    "weights": ("*.safetensors",),
    "config": ("config.json", "adapter_config.json", "bottleneck_config.json"),
    "tokenizer": ("tokenizer*",),
}
"""File patterns required to serve a model; chat template and generation config are optional."""


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    version: str
    aliases: tuple[str, ...]
    content_hash: str
    source: str
    run_id: str
    tags: dict[str, str]

    def is_remote(self) -> bool:
        """Return whether the files are in a remote store."""
        return urlsplit(self.source).scheme not in ("", "file")

    def folder(self) -> Path:
        """Return the directory with the weights, as transformers loads it.

        Raises:
            TrackingError: The files are missing.
        """
        if self.is_remote():
            return _download(self)
        folder = Path(unquote(urlsplit(self.source).path)) / FILES
        if not any(folder.glob("*.safetensors")):
            raise TrackingError(
                f"The files of {self.name} version {self.version} ({', '.join(self.aliases) or 'no alias'}) are "
                f"missing in {folder}. Restore them, or remove the alias: `tuneline rollback {self.name}`."
            )
        return folder


def register(name: str, content_hash: str, source: str, run_id: str, tags: Mapping[str, str]) -> tuple[Version, bool]:
    """Register a model directory, once per content.

    Args:
        name: Registered model.
        content_hash: Hash of weights, tokenizer and chat template.
        source: URI of the folder with `MLmodel`; its files are uploaded to a server if necessary.
        run_id: MLflow run that produced it.
        tags: Lineage tags.

    Returns:
        The version, and whether it is new.

    Raises:
        TrackingError: The registry rejects it.
    """
    client = MlflowClient()
    if existing := find_by_content(content_hash, name):
        return existing[0], False
    accepted = model_source.resolve_source(source, run_id)  # before the lock, as it may take long
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise _rejection(name, accepted, error) from error
    with state.lock("registry"):
        if existing := find_by_content(content_hash, name):
            return existing[0], False
        try:
            version = client.create_model_version(
                name, accepted, run_id=run_id, tags={CONTENT_HASH_TAG: content_hash, **tags}
            )
        except MlflowException as error:
            raise _rejection(name, accepted, error) from error
    return find_version(name, str(version.version)), True


def _rejection(name: str, source: str, error: MlflowException) -> TrackingError:
    return TrackingError(
        f"The model registry at {mlflow.get_registry_uri()} rejects {source} as a version of {name}: "
        f"{one_line(error)} Check its settings and your permissions, then run again: finished steps "
        "are cached."
    )


def check_servable(folder: Path) -> None:
    """Check that a version has the files required to serve it.

    Raises:
        TrackingError: Weights, config or tokenizer are missing.
    """
    for part, patterns in SERVING_FILES.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            raise TrackingError(
                f"{folder} has no {part} ({' or '.join(patterns)}), so the model cannot be served and is not "
                "registered. Run its recipe again."
            )


def list_versions(name: str | None = None, most: int | None = None) -> list[Version]:
    """List versions of one model or of all models, newest first.

    Args:
        name: Registered model; default: all.
        most: Number of versions; default: all.
    """
    query = f"name = {quote(name)}" if name else None
    return _with_aliases(mlflow.search_model_versions(most, query, order_by=["version_number DESC"]))


def list_recent(name: str | None, most: int) -> list[Version]:
    """List the newest versions, then older versions with an alias, of one model or of all models."""
    newest = list_versions(name, most)
    listed = {(version.name, version.version) for version in newest}
    aliased = {(model.name, str(number)) for model in list_models(name).values() for number in model.aliases.values()}
    return newest + [find_version(*key) for key in sorted(aliased - listed)]


def find_by_content(content_hash: str, name: str | None = None) -> list[Version]:
    """List the versions with a content hash, newest first, of one model or of all models."""
    query = f"tags.`{CONTENT_HASH_TAG}` = {quote(content_hash)}"
    if name:
        query += f" and name = {quote(name)}"
    return _with_aliases(mlflow.search_model_versions(None, query, order_by=["version_number DESC"]))


def list_models(name: str | None = None) -> dict[str, RegisteredModel]:
    """Return name -> registered model with aliases and tags, for one name or for all."""
    query = f"name = {quote(name)}" if name else None
    return {model.name: model for model in mlflow.search_registered_models(filter_string=query)}


def get_aliases(name: str) -> dict[str, str]:
    """Return alias -> version of a model; empty if the model does not exist."""
    return {alias: str(number) for model in list_models(name).values() for alias, number in model.aliases.items()}


def find_version(name: str, version_or_alias: str) -> Version:
    """Return a version by number or alias.

    Raises:
        NotFoundError: It does not exist.
    """
    client = MlflowClient()
    try:
        if version_or_alias.isdecimal() and len(version_or_alias) <= MAX_VERSION_DIGITS:
            return _version(client.get_model_version(name, version_or_alias))
        return _version(client.get_model_version_by_alias(name, version_or_alias))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    if not (newest := list_versions(name, most=MAX_LISTED)):
        raise NotFoundError.among("model", name, list(list_models())[:MAX_LISTED])
    labels = {*get_aliases(name), *(version.version for version in newest)}
    raise NotFoundError.among(f"version of {name}", version_or_alias, labels)


def get_champion(name: str) -> Version | None:
    """Return the version with the alias `champion`, or None."""
    try:
        return _version(MlflowClient().get_model_version_by_alias(name, "champion"))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def quote(text: str) -> str:
    """Quote a text for an MLflow filter string.

    Raises:
        NotFoundError: MLflow filter strings cannot contain it.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise NotFoundError(f"{text!r} does not exist: MLflow cannot search for a name with both kinds of quotes.")


def _with_aliases(matches: Sequence[ModelVersion]) -> list[Version]:
    """Add the aliases, which a search of versions does not return."""
    names = {version.name for version in matches}
    registered = list_models(names.pop()) if len(names) == 1 else list_models() if names else {}
    return [_version(version, registered[version.name].aliases) for version in matches]


def _version(version: ModelVersion, aliases: Mapping[str, Any] | None = None) -> Version:
    number = str(version.version)
    names = version.aliases if aliases is None else [alias for alias, at in aliases.items() if str(at) == number]
    tags = dict(version.tags)
    return Version(
        version.name,
        number,
        tuple(sorted(names)),
        tags.get(CONTENT_HASH_TAG, ""),
        version.source or "",
        version.run_id or "",
        tags,
    )


def _download(version: Version) -> Path:
    """Return the local copy of a version's files, shared with the registered artifact."""
    text = _checksums_text(version)
    key = artifact_cache.artifact_key(text) if text else digest(["version", version.source, version.content_hash])
    return artifact_cache.cached_folder(key, lambda folder: _fetch(version, folder), checksums.check) / FILES


@contextmanager
def stored_folder(version: Version) -> Iterator[Path]:
    """Yield the stored directory with the weights; for a remote store, a temporary copy."""
    if not version.is_remote():
        yield version.folder()
        return
    with tempfile.TemporaryDirectory(dir=owner.scratch_folder()) as scratch:
        _fetch(version, Path(scratch))
        yield Path(scratch) / FILES


def _checksums_text(version: Version) -> str | None:
    """Return the checksums file of a version, or None."""
    import mlflow.artifacts

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = mlflow.artifacts.download_artifacts(f"{version.source}/{checksums.FILE}", dst_path=scratch)
            return Path(path).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None


def _fetch(version: Version, folder: Path) -> None:
    import mlflow.artifacts

    try:
        downloaded = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The files of {version.name} version {version.version} cannot be downloaded from {version.source}: "
            f"{error}. Restore them, or remove the alias: `tuneline rollback {version.name}`."
        ) from error
    if downloaded != folder and downloaded.is_dir():  # some stores add the last part of the URI as a folder
        shutil.copytree(downloaded, folder, dirs_exist_ok=True, copy_function=shutil.move)
        shutil.rmtree(downloaded)
