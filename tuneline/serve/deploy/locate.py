"""Locate the model to serve: a registered version, folder, checkpoint, GGUF file, catalogue name or Hub repository.

Files are verified before they are loaded: those of a registered version against its content hash, all others by their
headers. Pickle files and custom code are refused unless the settings allow them.
"""

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tuneline import owner
from tuneline.config.existence import ADAPTER_CONFIGS, check_adapter
from tuneline.config.parsing import model_reference
from tuneline.config.parsing.model_reference import AdapterFolder, ModelReference, TrainingCheckpoint
from tuneline.config.sections.export import RegisteredModel
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, GgufModel, HubModel
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import RecipeError, SourceError
from tuneline.identity import Manifest, digest, tree_hash
from tuneline.model import adapter_bundle, source, value_head
from tuneline.model import integrity as model_integrity
from tuneline.model.methods import adapter_io
from tuneline.serve.deploy.located import LocatedModel
from tuneline.tracking import integrity, registry
from tuneline.tracking.registry import Version

logger = logging.getLogger(__name__)


def locate(config: ServeConfig) -> LocatedModel:
    """Locate the model of the settings with its adapters.

    Raises:
        TunelineError: The model does not exist, is damaged, or is not supported by the engine.
    """
    reference = model_reference.parse(config.model)
    match reference:
        case RegisteredModel(name=name, version=version):
            return locate_version(registry.find_version(name, version), config)
        case AdapterFolder(path=path):
            located = _adapter_with_base(path.name, path, config)
        case TrainingCheckpoint(path=path):
            located = _checkpoint(path, config)
        case _:
            located = _base_model(reference, config)
    return _finish(located, config)


def locate_version(version: Version, config: ServeConfig) -> LocatedModel:
    """Verify the files of a registered version and locate them, with the adapters of the settings.

    Raises:
        TunelineError: Files are missing or changed, or the engine does not support the model.
    """
    folder = integrity.verified_folder(version)
    located = LocatedModel(
        name=f"{version.name}/{version.version}",
        folder=folder,
        content_hash=version.content_hash or _folder_hash(folder, f"version {version.version}"),
        description=f"registered model {version.name} version {version.version}",
        created=_created(folder),
        gguf=_find_gguf(folder, config),
        version=version,
    )
    return _finish(located, config)


def _finish(located: LocatedModel, config: ServeConfig) -> LocatedModel:
    """Add the adapters of the settings, and check that the engine supports the model."""
    is_bundle = adapter_bundle.is_adapter_bundle(located.folder)
    if is_bundle and config.engine != "transformers":
        raise RecipeError(
            f"engine: {config.engine} cannot serve {located.description}, an adapter that is stored with its base "
            "model. Set engine: transformers."
        )
    if config.engine == "llama_cpp" and located.gguf is None:
        raise RecipeError(
            f"engine: llama_cpp needs a GGUF file, and {located.description} has none. Export one with tuneline "
            "export --gguf, or set engine: transformers."
        )
    is_reward_model = value_head.has_value_head(located.folder)
    if is_reward_model and config.engine != "transformers":
        raise RecipeError(
            f"engine: {config.engine} cannot serve {located.description}, a reward model. Set engine: transformers."
        )
    adapters = dict(located.adapters)
    for name, text in config.adapters.items():
        if name in adapters:
            raise RecipeError(f"adapters: {name} is the name of the adapter in {config.model}. Set another name.")
        adapters[name] = _locate_adapter(name, text, config)
    return replace(located, adapters=adapters, is_reward_model=is_reward_model)


def _options(config: ServeConfig) -> ModelLoadOptions:
    return ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)


def _base_model(reference: ModelReference | DirectoryModel, config: ServeConfig, key: str = "model") -> LocatedModel:
    """Locate a model that is not in the registry."""
    match reference:
        case GgufModel():
            return _gguf(reference, config)
        case DirectoryModel(path=path) if adapter_bundle.is_adapter_bundle(path):
            model_integrity.check_model_folder(path / adapter_bundle.BASE_FOLDER)
            description = f"directory {path.name}"
            return LocatedModel(path.name, path, tree_hash(path), description, _created(path))
        case DirectoryModel(path=path) if _only_gguf(path):
            return _gguf(GgufModel(type="gguf", path=_choose_gguf(path)), config)
        case DirectoryModel() | CatalogueModel() | HubModel():
            tokenizer, base_model, description = source.resolve_model(reference, _options(config))
            folder = source.manifest_folder(base_model)
            name = _source_name(reference, folder)
            tokenizer = _with_template(tokenizer, base_model, config)
            return LocatedModel(
                name,
                folder,
                digest([tokenizer.content_hash(), base_model.content_hash()]),
                _origin(description),
                _created(folder),
                gguf=_find_gguf(folder, config),
                tokenizer_folder=source.manifest_folder(tokenizer),
            )
        case RegisteredModel(name=name, version=number):
            return locate_version(registry.find_version(name, number), config.model_copy(update={"adapters": {}}))
        case _:
            raise RecipeError(f"{key}: expected a whole model, got an adapter. Give a model folder or a model name.")


def _with_template(tokenizer: Manifest, base_model: Manifest, config: ServeConfig) -> Manifest:
    """Return the tokenizer with the chat template of the settings; `auto` may find none, for a model that has none."""
    from tuneline.data.chat_template import selection

    try:
        tokenizer, description = selection.select_template(tokenizer, config.template, source.model_type(base_model))
    except SourceError as error:
        if config.template != "auto":
            raise
        logger.warning("No chat template: %s Chat requests are rejected.", error)
        return tokenizer
    logger.info("%s", description)
    return tokenizer


def _source_name(reference: DirectoryModel | CatalogueModel | HubModel, folder: Path) -> str:
    match reference:
        case CatalogueModel(name=name):
            return name
        case HubModel(repo_id=repo_id):
            return repo_id
        case _:
            return folder.name


def _gguf(reference: GgufModel, config: ServeConfig) -> LocatedModel:
    """Locate a GGUF file: llama.cpp reads it, for other engines it is converted to safetensors once."""
    path = reference.path
    if config.engine == "llama_cpp":
        tokenizer, _, description = source.resolve_tokenizer(reference)
        content_hash = digest([file.name for file in reference.files()] + [_file_hash(reference)])
        folder = source.manifest_folder(tokenizer)
    else:
        tokenizer, base_model, description = source.resolve_model(reference, _options(config))
        content_hash = digest([tokenizer.content_hash(), base_model.content_hash()])
        folder = source.manifest_folder(base_model)
    gguf = path if config.engine == "llama_cpp" else None
    return LocatedModel(path.stem, folder, content_hash, _origin(description), int(path.stat().st_mtime), gguf=gguf)


def _file_hash(reference: GgufModel) -> str:
    from tuneline.identity import file_entries

    entries = file_entries(reference.path.parent, reference.files())
    return digest([entry.sha256 for entry in entries])


def _find_gguf(folder: Path, config: ServeConfig) -> Path | None:
    """Return the GGUF file of a model folder, for engine llama_cpp."""
    return _choose_gguf(folder) if config.engine == "llama_cpp" and any(folder.glob("*.gguf")) else None


def _only_gguf(folder: Path) -> bool:
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))


def _choose_gguf(folder: Path) -> Path:
    """Return the only GGUF model of a folder; the first part if it is split.

    Raises:
        RecipeError: There are several.
    """
    paths = sorted(folder.glob("*.gguf"))
    models = {GgufModel(type="gguf", path=path).files()[0] for path in paths}
    if len(models) > 1:
        names = ", ".join(sorted(path.name for path in models))
        raise RecipeError(f"{folder} has several GGUF models: {names}. Give the path of one of them.")
    return models.pop()


def _adapter_with_base(name: str, path: Path, config: ServeConfig) -> LocatedModel:
    """Locate an adapter folder and its base model."""
    check_adapter(path, "model")
    base = _base_of_adapter(path, config)
    content_hash = digest([base.content_hash, tree_hash(path, ("README.md",))])
    return replace(
        base,
        name=name,
        content_hash=content_hash,
        description=f"adapter {path.name} on {base.description}",
        created=_created(path),
        adapters={name: path},
        adapter=name,
        base_name=base.name,
        version=None,
    )


def _base_of_adapter(path: Path, config: ServeConfig) -> LocatedModel:
    if config.base is not None:
        return _base_model(model_reference.parse(config.base), config, "base")
    is_peft = (path / adapter_io.ADAPTER_CONFIG).is_file()
    recorded = adapter_io.read_config(path).get("base_model_name_or_path") if is_peft else None
    hint = "Give its base model with --base."
    if not recorded:
        raise SourceError(f"model: {path} does not name its base model. {hint}")
    try:
        return _base_model(model_reference.parse(str(recorded)), config, "base")
    except (LookupError, OSError, ValueError) as error:
        raise SourceError(f"model: the base model {str(recorded)!r} that {path} names: {error} {hint}") from error


def _checkpoint(path: Path, config: ServeConfig) -> LocatedModel:
    """Build the model of a checkpoint in a scratch folder, so that the trainer can delete the checkpoint."""
    from tuneline.train.checkpoint import checkpoint_model

    scratch = Path(tempfile.mkdtemp(prefix="serve-", dir=owner.scratch_folder()))
    base = _base_manifests(config) if config.base is not None else None
    built = checkpoint_model.build_model(path, scratch, base)
    name = f"{built.training[:8]}/checkpoint-{built.step}"
    description = f"step {built.step} of training {built.training[:8]} on {built.base_model.items[0].source}"
    return LocatedModel(
        name, built.folder, tree_hash(built.folder), description, _created(built.folder), scratch=scratch
    )


def _base_manifests(config: ServeConfig) -> tuple[Manifest, Manifest]:
    reference = model_reference.parse(config.base or "")
    if not isinstance(reference, DirectoryModel | CatalogueModel | HubModel | GgufModel):
        raise RecipeError("base: expected a model folder, a GGUF file, a catalogue name or a Hub repository.")
    tokenizer, base_model, _ = source.resolve_model(reference, _options(config))
    return tokenizer, base_model


def _locate_adapter(name: str, text: str, config: ServeConfig) -> Path:
    """Return the folder of an adapter of the settings."""
    reference = model_reference.parse(text)
    match reference:
        case AdapterFolder(path=path):
            pass
        case TrainingCheckpoint(path=checkpoint):
            path = _adapter_of_checkpoint(name, checkpoint, config)
        case HubModel():
            path = _download_adapter(reference)
        case _:
            raise RecipeError(
                f"adapters.{name}: expected an adapter ({' or '.join(ADAPTER_CONFIGS)}), got {text!r}. Give an adapter "
                "folder, a checkpoint of a training, or a Hub repository with an adapter."
            )
    check_adapter(path, f"adapters.{name}")
    adapter_io.adapter_method(path)
    return path


def _adapter_of_checkpoint(name: str, checkpoint: Path, config: ServeConfig) -> Path:
    from tuneline.train.checkpoint import checkpoint_model

    scratch = Path(tempfile.mkdtemp(prefix="serve-", dir=owner.scratch_folder()))
    base = _base_manifests(config) if config.base is not None else None
    built = checkpoint_model.build_model(checkpoint, scratch, base)
    if built.adapter is None:
        raise RecipeError(
            f"adapters.{name}: {checkpoint} trains the weights of the base model, so it has no adapter. Serve it as "
            "the model."
        )
    return built.adapter


def _download_adapter(reference: HubModel) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = list(source.ADAPTER_FILES)
        return Path(snapshot_download(reference.repo_id, revision=reference.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise SourceError(f"{reference.repo_id} could not be downloaded from the Hub: {reason}") from error


def _origin(description: str) -> str:
    """Return a description of `resolve_model` without its prefix."""
    return description.removeprefix("base model: ")


def _folder_hash(folder: Path, origin: str) -> str:
    tokenizer, base_model = source.folder_manifests(folder, origin)
    return digest([tokenizer.content_hash(), base_model.content_hash()])


def _created(folder: Path, patterns: Iterable[str] = ("*.safetensors", "*.json")) -> int:
    """Return the modification time of the newest file."""
    times = [path.stat().st_mtime for pattern in patterns for path in folder.glob(pattern)]
    return int(max(times, default=0))
