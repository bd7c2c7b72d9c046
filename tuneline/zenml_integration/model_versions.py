"""Mirrors the versions of MLflow's registry as model versions of ZenML.

Each call reads the newest versions and those with an alias, so that its cost does not grow with their number.

Version 7 is named `v7` in ZenML, which rejects plain numbers as names. ZenML has no aliases, and its stages are not
used: an alias is a tag of the version. The artifact of the weights is linked; metadata record the origin and the
decision.
"""

import json
from collections.abc import Iterable
from uuid import UUID

from zenml import log_metadata
from zenml.client import Client
from zenml.metadata.metadata_types import MetadataType
from zenml.models import ModelVersionArtifactRequest, ModelVersionResponse
from zenml.utils.pagination_utils import depaginate

from tuneline.tracking import registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.registry import ALIASES, Version
from tuneline.zenml_integration.stack import PAGE_SIZE

NUM_NEWEST = 20
"""Number of newest versions that are mirrored."""


def mirror(name: str, decision: Decision | None = None) -> None:
    """Update ZenML's versions of a model, with their tags and metadata, from the registry.

    Args:
        name: Registered model.
        decision: Decision about one of its versions, recorded as metadata.
    """
    client = Client()
    versions = {version_name(version): version for version in registry.list_recent(name, NUM_NEWEST)}
    if not (model := _model(client, name, create=bool(versions))):
        return
    existing = [*_list_versions(client, model, tags=ALIASES), *_list_versions(client, model, name=versions)]
    mirrors = {str(version.name): version for version in existing}
    for label, version in reversed(versions.items()):
        if label not in mirrors:
            mirrors[label] = _create(client, model, version)
    for label, mirrored in mirrors.items():
        tags = {tag.name for tag in mirrored.tags if tag.name in ALIASES}
        aliases = set(versions[label].aliases) if label in versions else set()
        removed, added = sorted(tags - aliases), sorted(aliases - tags)
        if removed or added:
            client.update_model_version(model, mirrored.id, add_tags=added, remove_tags=removed)
        if decision and label == f"v{decision.version}":
            log_metadata(metadata=_decision_metadata(decision), model_version_id=mirrored.id)


def version_name(version: Version) -> str:
    """Return the name of a registry version in ZenML."""
    return f"v{version.version}"


def _decision_metadata(decision: Decision) -> dict[str, MetadataType]:
    gains: dict[str, MetadataType] = {
        f"{finding.metric} over {finding.against}": finding.gain for finding in decision.findings
    }
    return {"decision": decision.sentence, "promoted": decision.promoted, **gains}


def _model(client: Client, name: str, *, create: bool) -> UUID | None:
    try:
        return client.get_model(name, hydrate=False).id
    except KeyError:
        if not create:
            return None
        return client.create_model(name, description="Mirrors the MLflow registry.").id


def _list_versions(client: Client, model: UUID, **conditions: Iterable[str]) -> list[ModelVersionResponse]:
    """List the versions whose name or tags are among the given values."""
    filters = {key: f"oneof:{json.dumps(list(values))}" for key, values in conditions.items()}
    return depaginate(client.list_model_versions, model=model, size=PAGE_SIZE, hydrate=True, **filters)


def _create(client: Client, model: UUID, version: Version) -> ModelVersionResponse:
    created = client.create_model_version(model, name=version_name(version))
    metadata: dict[str, MetadataType] = {
        "content_hash": version.content_hash,
        "mlflow_model": f"models:/{version.name}/{version.version}",
        "mlflow_run_id": version.run_id,
        "weights": version.source,
    }
    log_metadata(metadata=metadata, model_version_id=created.id)
    if artifact := version.tags.get("zenml.artifact"):
        request = ModelVersionArtifactRequest(artifact_version=UUID(artifact), model_version=created.id)
        client.zen_store.create_model_version_artifact_link(request)
    return created
