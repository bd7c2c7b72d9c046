"""ZenML's model versions, kept in step with MLflow's registry, which decides.

Version 7 is called `v7` there, as ZenML counts by itself and refuses plain numbers as names. ZenML has no aliases, and
its stages are not used: an alias is a tag of the version. The artifact of the weights is linked, and metadata say where
the version came from and what was decided.
"""

from uuid import UUID

from zenml import log_metadata
from zenml.client import Client
from zenml.metadata.metadata_types import MetadataType
from zenml.models import ModelVersionArtifactRequest, ModelVersionResponse

from tuneline.tracking import registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.registry import ALIASES, Version


def mirror(name: str, decision: Decision | None = None) -> None:
    """Make ZenML's versions of a model, their tags and metadata those of the registry.

    Args:
        name: Registered model.
        decision: What was just decided about one of its versions.
    """
    client = Client()
    model = _model(client, name)
    known = {str(each.name): each for each in _versions(client, model)}
    for version in registry.versions(name):
        there = known.get(name_of(version)) or _create(client, model, version)
        tags = {tag.name for tag in there.tags if tag.name in ALIASES}
        gone, fresh = sorted(tags - set(version.aliases)), sorted(set(version.aliases) - tags)
        if gone or fresh:
            client.update_model_version(model, there.id, add_tags=fresh, remove_tags=gone)
        if decision and decision.version == version.version:
            log_metadata(metadata=_told(decision), model_version_id=there.id)


def name_of(version: Version) -> str:
    """Return what ZenML calls a version of the registry."""
    return f"v{version.version}"


def _told(decision: Decision) -> dict[str, MetadataType]:
    gains: dict[str, MetadataType] = {f"{each.metric} over {each.against}": each.gain for each in decision.findings}
    return {"decision": decision.sentence, "promoted": decision.promoted, **gains}


def _model(client: Client, name: str) -> UUID:
    try:
        return client.get_model(name, hydrate=False).id
    except KeyError:
        return client.create_model(name, description="Kept in step with MLflow's registry.").id


def _versions(client: Client, model: UUID) -> list[ModelVersionResponse]:
    found: list[ModelVersionResponse] = []
    page = client.list_model_versions(model=model, size=1000, hydrate=True)
    found += page.items
    while len(found) < page.total:
        page = client.list_model_versions(model=model, size=1000, page=page.index + 1, hydrate=True)
        found += page.items
    return found


def _create(client: Client, model: UUID, version: Version) -> ModelVersionResponse:
    made = client.create_model_version(model, name=name_of(version))
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
