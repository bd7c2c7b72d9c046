"""Versions in the MLflow model registry: found by the content of their weights, pointed at by aliases, never copied."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tuneline import checksums, downloads, state
from tuneline.errors import NotFoundError, TrackingError
from tuneline.identity import digest
from tuneline.tracking.flavor import FILES

CONTENT_HASH = "tuneline.content_hash"
ALIASES = ("challenger", "champion", "previous")


NEEDED = {
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

    def folder(self) -> Path:
        """Return the directory with the weights, as transformers loads it.

        Raises:
            TrackingError: The files are gone.
        """
        parts = urlsplit(self.source)
        if parts.scheme not in ("", "file"):
            return _download(self)
        folder = Path(unquote(parts.path)) / FILES
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
        source: URI of the folder that holds `MLmodel`.
        run_id: MLflow run that made it.
        tags: Lineage.

    Returns:
        The version, and whether it is new.
    """
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with state.lock("registry"):
        for known in versions(name):
            if known.content_hash == content_hash:
                return known, False
        made = client.create_model_version(name, source, run_id=run_id, tags={CONTENT_HASH: content_hash, **tags})
    return find(name, str(made.version)), True


def check_servable(folder: Path) -> None:
    """Check that a version would hold what serving it takes.

    Raises:
        TrackingError: Weights, config or tokenizer are missing.
    """
    for what, patterns in NEEDED.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            raise TrackingError(
                f"{folder} has no {what} ({' or '.join(patterns)}), so the model could not be served, and is not "
                "registered. Run its recipe again."
            )


def versions(name: str | None = None) -> list[Version]:
    """List versions, newest first; of one model, or of all."""
    client = MlflowClient()
    query = f"name = '{name}'" if name else None
    found = client.search_model_versions(query, order_by=["version_number DESC"], max_results=1000)
    aliases = {model: dict(client.get_registered_model(model).aliases) for model in {v.name for v in found}}
    return [_version(v, aliases[v.name]) for v in found]


def find(name: str, version_or_alias: str) -> Version:
    """Return a version by number or alias.

    Raises:
        NotFoundError: There is none.
    """
    known = versions(name)
    for version in known:
        if version_or_alias in (version.version, *version.aliases):
            return version
    names = [label for version in known for label in (version.version, *version.aliases)]
    raise NotFoundError.among(f"version of {name}", version_or_alias, names)


def champion(name: str) -> Version | None:
    """Return the version with the alias `champion`, if there is one."""
    return next((version for version in versions(name) if "champion" in version.aliases), None)


def _version(version: ModelVersion, aliases: Mapping[str, str]) -> Version:
    number = str(version.version)
    mine = tuple(sorted(alias for alias, target in aliases.items() if str(target) == number))
    tags = dict(version.tags)
    return Version(
        version.name, number, mine, tags.get(CONTENT_HASH, ""), version.source or "", version.run_id or "", tags
    )


def _download(version: Version) -> Path:
    """Return the copy of a version's files on this machine; the artifact that was registered has the same one."""
    text = _checksums_text(version)
    key = downloads.key_of(text) if text else digest(["version", version.source, version.content_hash])
    return downloads.folder(key, lambda folder: _fetch(version, folder), checksums.check) / FILES


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
