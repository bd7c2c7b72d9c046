"""Locates the model of an export: in the registry, in a run, or at the location of a base model."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from zenml.client import Client

from tuneline.config.sections.export import LocateConfig, RegisteredModel, RunModel
from tuneline.config.sections.load import AdapterSource, ModelLoadOptions
from tuneline.data.chat_template import selection
from tuneline.errors import NotFoundError, RecipeError, TrackingError
from tuneline.export import hub, local_folder
from tuneline.export.origin import Origin
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, source, value_head
from tuneline.tracking import compare, integrity, registry, run_artifacts
from tuneline.tracking.registry import Version

ModelParts = tuple[Manifest, Manifest, Origin]
SYSTEM_PARAM = "align.system"
EMPTY_VALUES = ("None", "")


def locate(config: LocateConfig) -> ModelParts:
    """Locate a model with its tokenizer and origin.

    Raises:
        TunelineError: The model does not exist, was changed, is not a complete model, or the destination is not valid.
    """
    if config.to:
        local_folder.check_folder(config.to)
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
        case RegisteredModel(name=name, version=version):
            return _locate_registered(registry.find_version(name, version))
        case RunModel(name=name):
            return _locate_run(name)
        case location:
            options = ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)
            tokenizer, base_model, description = source.resolve_model(location, options)
            item = base_model.items[0]
            return tokenizer, base_model, Origin(name=item.name, source=description, licence=item.licence)


def _locate_registered(version: Version) -> ModelParts:
    folder = integrity.verified_folder(version)
    description = f"registered model {version.name} version {version.version}"
    origin = Origin(
        name=version.name,
        version=version.version,
        content_hash=version.content_hash,
        source=description,
        card=_card(version),
        system=_system_message(version.run_id),
        mlflow_run_id=version.run_id,
    )
    return *source.folder_manifests(folder, description), origin


def _locate_run(name: str) -> ModelParts:
    """Return the model of a run; if it was registered, that version."""
    try:
        run = Client().get_pipeline_run(name)
        model = run.steps["merge_adapter"].output
    except KeyError as error:
        raise NotFoundError(
            f"No run {name!r} with a model was found. `tuneline runs` lists runs; give the name of one that finished "
            "merge_adapter."
        ) from error
    content_hash = str(model.run_metadata.get("sha256", ""))
    if content_hash and (versions := registry.find_by_content(content_hash)):
        return _locate_registered(versions[0])
    description = f"run {run.name}"
    parts = source.folder_manifests(model.load().path, description)
    return *parts, Origin(
        name=run.name, content_hash=content_hash, source=description, system=_system_message_of_run(run.name)
    )


def _card(version: Version) -> str:
    try:
        return run_artifacts.load_card(version)
    except TrackingError:
        return ""


def _system_message(run_id: str) -> str | None:
    """Return the default system message of a run."""
    try:
        text = MlflowClient().get_run(run_id).data.params.get(SYSTEM_PARAM)
    except MlflowException:
        return None
    return None if text in EMPTY_VALUES else text


def _system_message_of_run(name: str) -> str | None:
    try:
        return _system_message(compare.find_run(name).info.run_id)
    except NotFoundError:
        return None


def _refuse_parts(folder: Path) -> None:
    """Raise an error for a folder that is not a complete chat model.

    Raises:
        RecipeError: It is a reward model, or an adapter without a merged form.
    """
    if value_head.has_value_head(folder):
        raise RecipeError(f"model: {folder} is a reward model, which cannot generate text. Set a chat model.")
    if adapter_bundle.is_adapter_bundle(folder):
        raise RecipeError(
            f"model: {folder} contains an adapter next to its base model, because its method has no merged form. "
            "Export a model of another method, or serve this folder with MLflow."
        )
