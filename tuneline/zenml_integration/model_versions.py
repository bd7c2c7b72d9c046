"""ZenML's model versions, kept in step with MLflow's registry, which decides.

Each call looks at the newest versions and at those with an alias, which the one that was just decided about has, so
that its cost does not grow with their number.

Version 7 is called `v7` there, as ZenML counts by itself and refuses plain numbers as names. ZenML has no aliases, and
its stages are not used: an alias is a tag of the version. The artifact of the weights is linked, and metadata say where
the version came from and what was decided.
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
"""Versions that are looked at without a reason."""


def mirror(name: str, decision: Decision | None = None) -> None:
    """Make ZenML's versions of a model, their tags and metadata those of the registry.

    Args:
        name: Registered model.
        decision: What was just decided about one of its versions.
    """
    client = Client()
    wanted = {version_name(version): version for version in registry.list_recent(name, NUM_NEWEST)}
    if not (model := _model(client, name, create=bool(wanted))):
        return
    there = [*_listed(client, model, tags=ALIASES), *_listed(client, model, name=wanted)]
    known = {str(each.name): each for each in there}
    for label, version in reversed(wanted.items()):
        if label not in known:
            known[label] = _create(client, model, version)
    for label, mirrored in known.items():
        tags = {tag.name for tag in mirrored.tags if tag.name in ALIASES}
        aliases = set(wanted[label].aliases) if label in wanted else set()
        gone, fresh = sorted(tags - aliases), sorted(aliases - tags)
        if gone or fresh:
            client.update_model_version(model, mirrored.id, add_tags=fresh, remove_tags=gone)
        if decision and label == f"v{decision.version}":
            log_metadata(metadata=_told(decision), model_version_id=mirrored.id)


def version_name(version: Version) -> str:
    """Return what ZenML calls a version of the registry."""
    return f"v{version.version}"


def _told(decision: Decision) -> dict[str, MetadataType]:
    gains: dict[str, MetadataType] = {f"{each.metric} over {each.against}": each.gain for each in decision.findings}
    return {"decision": decision.sentence, "promoted": decision.promoted, **gains}


def _model(client: Client, name: str, *, create: bool) -> UUID | None:
    try:
        return client.get_model(name, hydrate=False).id
    except KeyError:
        if not create:
            return None
        return client.create_model(name, description="Kept in step with MLflow's registry.").id


def _listed(client: Client, model: UUID, **wanted: Iterable[str]) -> list[ModelVersionResponse]:
    """List the versions whose name or tags are among those wanted."""
    filters = {key: f"oneof:{json.dumps(list(values))}" for key, values in wanted.items()}
    return depaginate(client.list_model_versions, model=model, size=PAGE_SIZE, hydrate=True, **filters)


def _create(client: Client, model: UUID, version: Version) -> ModelVersionResponse:
    made = client.create_model_version(model, name=version_name(version))
    about: dict[str, MetadataType] = {
        "content_hash": version.content_hash,
        "mlflow_model": f"models:/{version.name}/{version.version}",
        "mlflow_run_id": version.run_id,
        "weights": version.source,
    }
    log_metadata(metadata=about, model_version_id=made.id)
    if artifact := version.tags.get("zenml.artifact"):
        request = ModelVersionArtifactRequest(artifact_version=UUID(artifact), model_version=made.id)
        client.zen_store.create_model_version_artifact_link(request)
    return made
