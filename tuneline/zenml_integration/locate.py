"""Find the model of an export: in the registry, in a run, or where base models come from; checked before any work."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from zenml.client import Client

from tuneline.config.sections.export import LocateConfig, RegisteredModel, RunModel
from tuneline.config.sections.load import AdapterSource, ModelLoadOptions
from tuneline.data.chat_template import selection
from tuneline.errors import NotFoundError, RecipeError, TrackingError
from tuneline.export import hub, place
from tuneline.export.origin import Origin
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, source, value_head
from tuneline.tracking import compare, integrity, registry, run_artifacts
from tuneline.tracking.registry import Version

ModelParts = tuple[Manifest, Manifest, Origin]
SYSTEM_PARAM = "align.system"
EMPTY_VALUES = ("None", "")


def locate(config: LocateConfig) -> ModelParts:
    """Find a model, with its tokenizer and what is known of it.

    Raises:
        TunelineError: It is not there, or not what was registered, cannot stand alone, or cannot go where it should.
    """
    if config.to:
        place.check_folder(config.to)
    if config.push:
        hub.check_push(config.push)
    tokenizer, base_model, origin = _find(config)
    _refuse_parts(source.manifest_folder(base_model))
    adapters = [AdapterSource(path=path) for path in config.adapters]
    base_model = source.add_adapters(base_model, adapters)
    tokenizer, _ = selection.select_template(
        tokenizer, config.template, source.model_type(base_model), config.template_arguments
    )
    return tokenizer, base_model, origin


def _find(config: LocateConfig) -> ModelParts:
    match config.model:
        case RegisteredModel(name=name, version=asked):
            return _registered(registry.find_version(name, asked))
        case RunModel(name=name):
            return _of_run(name)
        case place_of_base:
            holding = ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)
            tokenizer, base_model, said = source.resolve_model(place_of_base, holding)
            item = base_model.items[0]
            return tokenizer, base_model, Origin(name=item.name, source=said, licence=item.licence)


def _registered(version: Version) -> ModelParts:
    folder = integrity.verified_folder(version)
    said = f"registered model {version.name} version {version.version}"
    about = Origin(
        name=version.name,
        version=version.version,
        content_hash=version.content_hash,
        source=said,
        card=_card(version),
        system=_system(version.run_id),
        mlflow_run_id=version.run_id,
    )
    return *source.folder_manifests(folder, said), about


def _of_run(name: str) -> ModelParts:
    """Return what a run made; where it was registered, that version."""
    try:
        run = Client().get_pipeline_run(name)
        model = run.steps["merge_adapter"].output
    except KeyError as error:
        raise NotFoundError(
            f"There is no run {name!r} that made a model. `tuneline runs` lists runs; give the name of one that went "
            "through merge_adapter."
        ) from error
    content_hash = str(model.run_metadata.get("sha256", ""))
    if content_hash and (known := registry.find_by_content(content_hash)):
        return _registered(known[0])
    said, made = f"run {run.name}", model.load()
    found = source.folder_manifests(made.path, said)
    return *found, Origin(name=run.name, content_hash=content_hash, source=said, system=_system_of_run(run.name))


def _card(version: Version) -> str:
    try:
        return run_artifacts.load_card(version)
    except TrackingError:
        return ""


def _system(run_id: str) -> str | None:
    """Return the default system message that a run gave to rows without one."""
    try:
        said = MlflowClient().get_run(run_id).data.params.get(SYSTEM_PARAM)
    except MlflowException:
        return None
    return None if said in EMPTY_VALUES else said


def _system_of_run(name: str) -> str | None:
    try:
        return _system(compare.find_run(name).info.run_id)
    except NotFoundError:
        return None


def _refuse_parts(folder: Path) -> None:
    """Refuse a model in two parts.

    Raises:
        RecipeError: It has no form that stands alone.
    """
    if (folder / value_head.HEAD_FILE).is_file():
        raise RecipeError(f"model: {folder} is a reward model, which judges answers and gives none. Name a chat model.")
    if adapter_bundle.is_adapter_bundle(folder):
        raise RecipeError(
            f"model: {folder} holds an adapter with its base beside it, as its method has no merged form. Export one "
            "of another method, or serve this folder through MLflow."
        )
