"""Checks of stored step outputs before a cached step is reused; errors name the step that made the output.

ZenML reuses a cached step without checking its files, so that a missing or damaged file would fail a later step,
possibly after hours of training, or stay unnoticed. ZenML has no hook for such a check, so `verify_cached_steps` wraps
the function that finds the cached step (canary: `tests/pipelines/test_damage.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zenml.artifact_stores import BaseArtifactStore
from zenml.client import Client
from zenml.models import ArtifactVersionResponse, StepRunResponse
from zenml.orchestrators import cache_utils

from tuneline import checksums
from tuneline.checksums import Checksums
from tuneline.errors import ArtifactError


@contextmanager
def verify_cached_steps() -> Iterator[None]:
    """Raise an error for a cached step whose outputs are missing or damaged, while the block runs."""
    find = cache_utils.get_cached_step_run

    def find_intact(cache_key: str) -> StepRunResponse | None:
        step = find(cache_key)
        if step is not None:
            check_outputs(step)
        return step

    cache_utils.get_cached_step_run = find_intact
    try:
        yield
    finally:
        cache_utils.get_cached_step_run = find


def check_outputs(step: StepRunResponse) -> None:
    """Check that the stored outputs of a finished step are unchanged.

    Raises:
        ArtifactError: One is missing or damaged.
    """
    store = Client().active_stack.artifact_store
    for artifact in (artifact for outputs in step.outputs.values() for artifact in outputs):
        try:
            _check(artifact, store)
        except ArtifactError as error:
            raise ArtifactError(f"{error} {checksums.recovery_advice(step.name)}") from error


def recompute_hint(uri: str) -> str:
    """Return which step made an artifact and how to compute it again, as recorded by ZenML."""
    versions = Client().list_artifact_versions(uri=uri, hydrate=True).items
    producer = versions[0].producer_step_run_id if versions else None
    return checksums.recovery_advice(Client().get_run_step(producer).name if producer else "")


def compare_hashes(location: str, actual: str | None, expected: str | None) -> None:
    """Compare a content hash with the one that ZenML recorded.

    Raises:
        ArtifactError: They differ.
    """
    if actual is not None and expected is not None and actual != expected:
        raise ArtifactError(f"{location} has the content hash {actual}, expected {expected} as ZenML recorded it.")


def _check(artifact: ArtifactVersionResponse, store: BaseArtifactStore) -> None:
    sums = checksums.check(Path(artifact.uri)) if store.config.is_local else _remote_checksums(artifact.uri, store)
    if sums:
        compare_hashes(artifact.uri, sums.content_hash, artifact.content_hash)


def _remote_checksums(uri: str, store: BaseArtifactStore) -> Checksums | None:
    """Check that each file exists and has its size; the bytes are compared when they are downloaded."""
    text = read_remote_text(uri, checksums.FILE, store)
    if text is None:
        if not store.exists(uri):
            raise ArtifactError(f"{uri} is missing.")
        return None
    sums = checksums.parse(text, f"{uri}/{checksums.FILE}")
    for entry in sums.files:
        address = f"{uri.rstrip('/')}/{entry.name}"
        if not store.exists(address):
            raise ArtifactError(f"{address} is missing.")
        size = store.size(address)
        if size is not None and size != entry.size:
            raise ArtifactError(f"{address} has {size} bytes, expected {entry.size} as it was stored.")
    return sums


def read_remote_text(uri: str, name: str, store: BaseArtifactStore) -> str | None:
    """Read a small file of an artifact; None if it does not exist."""
    address = f"{uri.rstrip('/')}/{name}"
    if not store.exists(address):
        return None
    with store.open(address, "rb") as file:
        content: Any = file.read()
    return content.decode("utf-8", errors="replace") if isinstance(content, bytes) else str(content)
