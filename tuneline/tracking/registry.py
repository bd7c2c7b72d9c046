"""Versions in the MLflow model registry: found by the content of their weights, pointed at by aliases.

Their files are never copied on a local store; see `tuneline.tracking.model_source` for a registry behind a server.
A version is looked up by its number, alias or content, so the cost of a look-up does not grow with their number.
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
"""Versions named in an error, from the newest."""

MAX_VERSION_DIGITS = 18
"""Digits that a database's integers hold."""

SERVING_FILES = {
    "weights": ("*.safetensors",),
    "config": ("config.json", "adapter_config.json", "bottleneck_config.json"),
    "tokenizer": ("tokenizer*",),
}
"""What serving a model takes, by file patterns; chat template and generation config lie beside, where it has them."""


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
        """Tell whether the files are where only MLflow reaches them."""
        return urlsplit(self.source).scheme not in ("", "file")

    def folder(self) -> Path:
        """Return the directory with the weights, as transformers loads it.

        Raises:
            TrackingError: The files are gone.
        """
        if self.is_remote():
            return _download(self)
        folder = Path(unquote(urlsplit(self.source).path)) / FILES
        if not any(folder.glob("*.safetensors")):
            raise TrackingError(
                f"The files of {self.name} version {self.version} ({', '.join(self.aliases) or 'no alias'}) are "
                "gone from "
                f"{folder}. Restore them, or take the alias away: `tuneline rollback {self.name}`."
            )
        return folder


def register(name: str, content_hash: str, source: str, run_id: str, tags: Mapping[str, str]) -> tuple[Version, bool]:
    """Register a model directory, once for the same content.

    Args:
        name: Registered model.
        content_hash: Of weights, tokenizer and template.
        source: URI of the folder that holds `MLmodel`; behind a server, its files are uploaded where need be.
        run_id: MLflow run that made it.
        tags: Lineage.

    Returns:
        The version, and whether it is new.

    Raises:
        TrackingError: The registry does not take it.
    """
    client = MlflowClient()
    if known := find_by_content(content_hash, name):
        return known[0], False
    accepted = model_source.resolve_source(source, run_id)  # before the lock, as it may take long
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise _refusal(name, accepted, error) from error
    with state.lock("registry"):
        if known := find_by_content(content_hash, name):
            return known[0], False
        try:
            made = client.create_model_version(
                name, accepted, run_id=run_id, tags={CONTENT_HASH_TAG: content_hash, **tags}
            )
        except MlflowException as error:
            raise _refusal(name, accepted, error) from error
    return find_version(name, str(made.version)), True


def _refusal(name: str, source: str, error: MlflowException) -> TrackingError:
    return TrackingError(
        f"The model registry at {mlflow.get_registry_uri()} does not take {source} as a version of {name}: "
        f"{one_line(error)} Change its settings or your permissions, then run again: finished steps come "
        "from the cache."
    )


def check_servable(folder: Path) -> None:
    """Check that a version would hold what serving it takes.

    Raises:
        TrackingError: Weights, config or tokenizer are missing.
    """
    for what, patterns in SERVING_FILES.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            raise TrackingError(
                f"{folder} has no {what} ({' or '.join(patterns)}), so the model could not be served, and is not "
                "registered. Run its recipe again."
            )


def list_versions(name: str | None = None, most: int | None = None) -> list[Version]:
    """List versions, newest first; of one model, or of all.

    Args:
        name: Registered model.
        most: How many, from the newest; default: every one.
    """
    query = f"name = {quote(name)}" if name else None
    return _with_aliases(mlflow.search_model_versions(most, query, order_by=["version_number DESC"]))


def list_recent(name: str | None, most: int) -> list[Version]:
    """List the newest versions and, behind them, older ones that hold an alias; of one model, or of all."""
    newest = list_versions(name, most)
    listed = {(version.name, version.version) for version in newest}
    standing = {(model.name, str(number)) for model in list_models(name).values() for number in model.aliases.values()}
    return newest + [find_version(*each) for each in sorted(standing - listed)]


def find_by_content(content_hash: str, name: str | None = None) -> list[Version]:
    """List the versions with a content, newest first; of one model, or of all."""
    query = f"tags.`{CONTENT_HASH_TAG}` = {quote(content_hash)}"
    if name:
        query += f" and name = {quote(name)}"
    return _with_aliases(mlflow.search_model_versions(None, query, order_by=["version_number DESC"]))


def list_models(name: str | None = None) -> dict[str, RegisteredModel]:
    """Return registered models with their aliases and tags, by name; the one of that name, or all."""
    query = f"name = {quote(name)}" if name else None
    return {model.name: model for model in mlflow.search_registered_models(filter_string=query)}


def get_aliases(name: str) -> dict[str, str]:
    """Return at which versions the aliases of a model stand; none where there is no such model."""
    return {alias: str(number) for model in list_models(name).values() for alias, number in model.aliases.items()}


def find_version(name: str, version_or_alias: str) -> Version:
    """Return a version by number or alias.

    Raises:
        NotFoundError: There is none.
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
    """Return the version with the alias `champion`, if there is one."""
    try:
        return _version(MlflowClient().get_model_version_by_alias(name, "champion"))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def quote(text: str) -> str:
    """Quote a text for one of MLflow's filters.

    Raises:
        NotFoundError: MLflow's filters have no way to write it.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise NotFoundError(f"Nothing is called {text!r}: MLflow cannot look for a name with both kinds of quotes.")


def _with_aliases(matches: Sequence[ModelVersion]) -> list[Version]:
    """Add the aliases, which a search of versions leaves out."""
    names = {version.name for version in matches}
    known = list_models(names.pop()) if len(names) == 1 else list_models() if names else {}
    return [_version(version, known[version.name].aliases) for version in matches]


def _version(version: ModelVersion, aliases: Mapping[str, Any] | None = None) -> Version:
    number = str(version.version)
    mine = version.aliases if aliases is None else [alias for alias, at in aliases.items() if str(at) == number]
    tags = dict(version.tags)
    return Version(
        version.name,
        number,
        tuple(sorted(mine)),
        tags.get(CONTENT_HASH_TAG, ""),
        version.source or "",
        version.run_id or "",
        tags,
    )


def _download(version: Version) -> Path:
    """Return the copy of a version's files on this machine; the artifact that was registered has the same one."""
    text = _checksums_text(version)
    key = artifact_cache.artifact_key(text) if text else digest(["version", version.source, version.content_hash])
    return artifact_cache.cached_folder(key, lambda folder: _fetch(version, folder), checksums.check) / FILES


@contextmanager
def stored_folder(version: Version) -> Iterator[Path]:
    """Give the directory with the weights as it is stored; of a remote store, a fresh copy that is removed behind."""
    if not version.is_remote():
        yield version.folder()
        return
    with tempfile.TemporaryDirectory(dir=owner.scratch_folder()) as scratch:
        _fetch(version, Path(scratch))
        yield Path(scratch) / FILES


def _checksums_text(version: Version) -> str | None:
    """Return the checksums beside a version's files, where it has some."""
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
        place = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The files of {version.name} version {version.version} cannot be had from {version.source}: {error}. "
            f"Restore them, or take the alias away: `tuneline rollback {version.name}`."
        ) from error
    if place != folder and place.is_dir():  # some stores lay the last part of the address into the folder
        shutil.copytree(place, folder, dirs_exist_ok=True, copy_function=shutil.move)
        shutil.rmtree(place)
