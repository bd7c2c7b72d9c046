"""Open a model in this process by the name that a user gives on the command line."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, HubModel, catalogue
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import RecipeError
from tuneline.identity import digest, tree_hash
from tuneline.model import adapter_bundle, precision, source, value_head
from tuneline.serve.deploy.interface import ServedVersion

if TYPE_CHECKING:
    from tuneline.tracking.registry import Version

REGISTERED = re.compile(r"(?:models:/)?(?P<name>[\w.-]+)(?:[@/](?P<version>[\w-]+))?")
REPOSITORY = re.compile(r"(?:hf:)?(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)")

BASE_MODEL_PARAMS = ("model.path", "model.name", "model.repo_id")
"""Parameters of a run that name its base model: a folder, a catalogue name, or a Hub repository."""


@dataclass(frozen=True)
class LocalModel:
    """A model on disk."""

    name: str
    """Resolved name: `demo/7` of a registered version, otherwise the name of the folder or repository."""

    folder: Path
    """Folder of weights and tokenizer."""

    content_hash: str
    options: ModelLoadOptions = field(default_factory=ModelLoadOptions)
    """Permissions: pickle files, custom code."""


def is_registered(text: str) -> bool:
    """Return whether a name can only be that of a registered model, so that the registry is needed to open it."""
    match = REGISTERED.fullmatch(text)
    if Path(text).exists() or match is None or text in catalogue():
        return False
    return "/" not in text or text.startswith("models:/") or (match["version"] or "").isdecimal()


def open_model(text: str, options: ModelLoadOptions | None = None) -> LocalModel:
    """Find a model: a folder, a registered version, a catalogue name, or a Hub repository; in this order.

    Raises:
        TunelineError: The model does not exist, or its files are damaged.
    """
    options = options or ModelLoadOptions()
    path = Path(text)
    if path.is_dir() and adapter_bundle.is_adapter_bundle(path):
        return LocalModel(path.resolve().name, path, tree_hash(path), options)
    if version := find_version(text):
        from tuneline.tracking import integrity

        folder = integrity.verified_folder(version)
        return LocalModel(f"{version.name}/{version.version}", folder, version.content_hash, options)
    tokenizer, base_model, _ = source.resolve_model(_source(text), options)
    folder = source.manifest_folder(base_model)
    name = folder.name if path.is_dir() else text
    return LocalModel(name, folder, digest([tokenizer.content_hash(), base_model.content_hash()]), options)


def find_version(text: str) -> "Version | None":
    """Return the registered version of a name; None if the name is not that of a registered model.

    Raises:
        NotFoundError: The registry does not have it.
        TrackingError: The registry cannot be used.
    """
    match = REGISTERED.fullmatch(text)
    if match is None or not is_registered(text):
        return None
    from tuneline.tracking import registry
    from tuneline.zenml_integration import tracker

    tracker.connect()
    return registry.find_version(match["name"], match["version"] or "champion")


def load_version(model: LocalModel) -> ServedVersion:
    """Load a model into an engine.

    Raises:
        RecipeError: It is a reward model, which does not answer.
        TunelineError: It cannot be loaded.
    """
    from tuneline.serve.engines.transformers.engine import TransformersEngine  # type: ignore[import-not-found]

    if (model.folder / value_head.HEAD_FILE).is_file():
        raise RecipeError(f"{model.name} is a reward model, which scores answers. Give a model that writes answers.")
    tokenizer = load_tokenizer_from(model.folder)
    engine = TransformersEngine.load(model.folder, tokenizer=tokenizer, dtype=precision.inference_dtype("auto"))
    fingerprint = digest([model.content_hash, engine.name])[:16]
    stops = stop_ids(model.folder, tokenizer.eos_token_id)
    return ServedVersion(model.name, model.folder, tokenizer, engine, fingerprint, stop_ids=stops)


def stop_ids(folder: Path, eos_token_id: int | None) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, and the tokenizer's end token."""
    path = folder / "generation_config.json"
    stored = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ids = stored if isinstance(stored, list) else [stored]
    return tuple(dict.fromkeys(each for each in [*ids, eos_token_id] if isinstance(each, int)))


def base_model(text: str) -> str:
    """Return the name of the model that a model was trained from, as `open_model` takes it.

    Raises:
        RecipeError: It is not known.
    """
    folder = Path(text)
    if version := find_version(text):
        import mlflow

        recipe = mlflow.MlflowClient().get_run(version.run_id).data.params
        if name := next((recipe[key] for key in BASE_MODEL_PARAMS if key in recipe), ""):
            return str(name)
        folder = version.folder()
    if adapter_bundle.is_adapter_bundle(folder):
        return str(folder / adapter_bundle.BASE_FOLDER)
    raise RecipeError(f"The base model of {text} is not recorded. Name it: /compare MODEL")


def _source(text: str) -> DirectoryModel | CatalogueModel | HubModel:
    path = Path(text)
    if path.is_dir():
        return DirectoryModel(type="directory", path=path.resolve())
    if text in catalogue():
        return CatalogueModel(type="catalogue", name=text)
    if match := REPOSITORY.fullmatch(text):
        return HubModel(type="hub", repo_id=match["repo_id"])
    raise RecipeError(
        f"{text[:200]!r} is not a model. Give a folder, a registered model such as demo@champion (`tuneline models` "
        "lists them), a catalogue name, or a Hub repository owner/name."
    )
