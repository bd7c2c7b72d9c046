"""Base models by source: find one, and know it by its bytes.

Weights and tokenizer are two manifests, so that a changed chat template leaves the weights' identity alone. A GGUF file
is converted once (`tuneline.model.gguf`) and kept under the hash of what it was made from.
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
"""All files that `derived_tokenizer` writes are among these, so they have one hash wherever they lie."""
CONFIG_FILES = ("config.json", "generation_config.json", "*.py")
PICKLE_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
ADAPTER_FILES = ("*.json", "*.safetensors")
REWARD_HEAD_FILE = "value_head.safetensors"
"""What a reward training leaves beside its adapter."""

REWARD_MODEL_SOURCE = "reward model"
"""What `source` of an adapter begins with that judges answers."""


def resolve_model(
    source: config.ModelSource, holding: ModelLoadOptions | None = None
) -> tuple[Manifest, Manifest, str]:
    """Find a base model.

    Args:
        source: Where it may lie.
        holding: What the recipe allows: pickles, the model's own code. Nothing of it where it is not given.

    Returns:
        The manifests `tokenizer` and `base_model`, and a sentence that says which place was used.

    Raises:
        SourceError: No place can be reached, a hash does not match, or the folder is no model.
    """
    holding = holding or ModelLoadOptions()
    if isinstance(source, config.CatalogueModel):
        return _first_reachable(source.name, holding)
    folder, licence, said = _fetch(source, holding)
    name = folder.name if isinstance(source, config.DirectoryModel) else said
    return *_manifests(folder, name, said, licence, holding), f"base model: {said}"


def resolve_tokenizer(source: config.ModelSource, holding: ModelLoadOptions | None = None) -> tuple[Manifest, str, str]:
    """Find the tokenizer of a base model alone: weights are neither converted nor checked, nor downloaded from the hub.

    Args:
        source: Where the model may lie.
        holding: What the recipe allows, as for `resolve`.

    Returns:
        The manifest, with the content hash of the one that `resolve` gives; the architecture's name, or an empty text;
        and which place was used.

    Raises:
        SourceError: No place can be reached, or the folder is no model.
    """
    holding = holding or ModelLoadOptions()
    if isinstance(source, config.CatalogueModel):
        failures = []
        for place in config.catalogue_entry(source.name).places:
            try:
                return resolve_tokenizer(place, holding)
            except SourceError as error:
                failures.append(f"{place.type}: {error}")
        raise SourceError(f"The model {source.name!r} could not be had from any place. " + " ".join(failures))
    folder, licence, said = _materialize(source, holding, weights=False)
    integrity.check_model_folder(folder, trust_remote_code=holding.trust_remote_code, needs_weights=False)
    manifest = Manifest(kind="tokenizer", items=[_located(folder, folder.name, said, licence, TOKENIZER_FILES)])
    return manifest, _read_model_type(folder), f"base model: {said}"


def tokenizer_manifest(folder: Path) -> Manifest:
    """Return the manifest of the tokenizer in a model directory."""
    return _manifests(folder, folder.name, f"directory {folder.name}", "unknown")[0]


def folder_manifests(folder: Path, said: str, licence: str = "unknown") -> tuple[Manifest, Manifest]:
    """Return the manifests `tokenizer` and `base_model` of a model directory.

    Args:
        folder: As `tuneline.model.merge` leaves it.
        said: Where it came from, in words.
        licence: As far as it is known.
    """
    return _manifests(folder, folder.name, said, licence)


def manifest_folder(manifest: Manifest) -> Path:
    """Return the folder of the weights or of the tokenizer that a manifest speaks of."""
    return Path(manifest.items[0].location)


def adapter_items(base_model: Manifest) -> list[Located]:
    """Return the adapters that become part of the model, in order."""
    return [item for item in base_model.items[1:] if not item.source.startswith(REWARD_MODEL_SOURCE)]


def adapter_folders(base_model: Manifest) -> list[Path]:
    """Return the folders of the adapters that become part of the model, in order."""
    return [Path(item.location) for item in adapter_items(base_model)]


def reward_model_folder(base_model: Manifest) -> Path | None:
    """Return the folder of the reward model that judges answers, if there is one."""
    return next(
        (Path(item.location) for item in base_model.items[1:] if item.source.startswith(REWARD_MODEL_SOURCE)), None
    )


def add_adapters(base_model: Manifest, adapters: Sequence[AdapterSource]) -> Manifest:
    """Add the adapters of a recipe to what a run starts from; their bytes become part of its identity.

    Raises:
        SourceError: A folder holds no adapter.
    """
    items = [*base_model.items, *(_adapter(adapter) for adapter in adapters)]
    return Manifest(kind=base_model.kind, items=items)


def _adapter(adapter: AdapterSource) -> Located:
    folder = adapter.path
    check_adapter(folder)
    if adapter.use == "reward":
        _check_reward_model(folder)
    files = _glob(folder, ADAPTER_FILES)
    said = f"{REWARD_MODEL_SOURCE if adapter.use == 'reward' else 'directory'} {folder.name}"
    return Located(name=folder.name, location=str(folder), source=said, files=file_entries(folder, files))


def _check_reward_model(folder: Path) -> None:
    for name in (REWARD_HEAD_FILE, "base_model"):
        if not (folder / name).exists():
            raise SourceError(
                f"load.adapters: {folder} has no {name}, so it cannot judge. Give the folder of a registered model "
                "that `stage: rm` trained with an adapter."
            )


def check_same_base(base_model: Manifest, reward_model: Path) -> None:
    """Compare the base of a reward adapter with the policy's: one model plays both.

    Raises:
        SourceError: The weights are others.
    """
    place = reward_model / "base_model"
    theirs, ours = file_entries(place, _glob(place, WEIGHT_FILES)), base_model.items[0].files
    if weights_hash(theirs) != weights_hash(ours):
        raise SourceError(
            f"load.adapters: the reward model {reward_model} was trained on another base than this recipe's model, and "
            "one base plays both. Name the same model, or train the reward model on this one."
        )


def model_type(base_model: Manifest) -> str:
    """Return the architecture's name in the model's config, or an empty text."""
    return _read_model_type(manifest_folder(base_model))


def _read_model_type(folder: Path) -> str:
    path = folder / "config.json"
    return str(json.loads(path.read_text()).get("model_type", "")) if path.is_file() else ""


def weights_hash(entries: list[FileEntry]) -> str:
    """Return the hash that `model.sha256` of a directory is compared with: names and bytes of the weights."""
    weights = [[entry.name, entry.sha256] for entry in entries if entry.name.endswith(".safetensors")]
    return digest(sorted(weights))


def _first_reachable(name: str, holding: ModelLoadOptions) -> tuple[Manifest, Manifest, str]:
    entry = config.catalogue_entry(name)
    failures = []
    for place in entry.places:
        try:
            folder, licence, said = _fetch(place, holding)
        except SourceError as error:
            failures.append(f"{place.type}: {error}")
            continue
        skipped = "".join(f" ({failure})" for failure in failures)
        return *_manifests(
            folder, name, said, entry.licence or licence
        ), f"base model {name}: taken from {said}{skipped}"
    raise SourceError(f"The model {name!r} could not be had from any place. " + " ".join(failures))


def _fetch(place: config.ModelLocation, holding: ModelLoadOptions) -> tuple[Path, str, str]:
    """Return the model's folder, its licence as far as known, and where it came from in words."""
    folder, licence, said = _materialize(place, holding)
    integrity.check_model_folder(
        folder,
        allow_pickle=holding.allow_pickle,
        trust_remote_code=holding.trust_remote_code,
        needs_weights=not holding.train_from_scratch,
    )
    return folder, licence, said


def _materialize(
    place: config.ModelLocation, holding: ModelLoadOptions, *, weights: bool = True
) -> tuple[Path, str, str]:
    match place:
        case config.DirectoryModel():
            check_model(place, holding)
            if weights:
                check_weights_hash(place)
            return place.path, "unknown", f"directory {place.path.name}"
        case config.GgufModel():
            check_model(place)
            return gguf.convert_gguf(place.files(), place.sha256, weights=weights), "unknown", f"GGUF {place.path.name}"
        case config.WheelModel():
            requirements = dict.fromkeys(part.requirement for part in (place, *place.parts))
            return wheel.convert_from_wheel(place, weights=weights), "unknown", f"wheel {', '.join(requirements)}"
        case config.HubModel():
            return _download(place, holding, weights=weights)


def check_weights_hash(place: config.ModelSource) -> None:
    """Compare a model directory with the hash that the recipe expects, if it expects one.

    Raises:
        SourceError: The weights are others.
    """
    if not isinstance(place, config.DirectoryModel) or place.sha256 is None:
        return
    got = weights_hash(file_entries(place.path, _glob(place.path, WEIGHT_FILES)))
    if got != place.sha256:
        raise SourceError(
            f"model.sha256: the weights in {place.path} have the hash {got}, expected {place.sha256}. Restore them, or "
            "correct the recipe."
        )


def _download(place: config.HubModel, holding: ModelLoadOptions, *, weights: bool = True) -> tuple[Path, str, str]:
    """Download a snapshot; fails within seconds where the hub cannot be reached."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*TOKENIZER_FILES, *CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    patterns += PICKLE_FILES if weights and holding.allow_pickle else ()
    try:
        folder = Path(snapshot_download(place.repo_id, revision=place.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise SourceError(f"{place.repo_id} cannot be had from the hub: {reason}") from error
    if weights:
        check_directory(folder, holding)
    return folder, "see its model card", f"hub {place.repo_id}@{folder.name}"


def _manifests(
    folder: Path, name: str, said: str, licence: str, holding: ModelLoadOptions | None = None
) -> tuple[Manifest, Manifest]:
    weights: tuple[str, ...] = WEIGHT_FILES if any(folder.glob("*.safetensors")) else PICKLE_FILES
    if holding and holding.train_from_scratch:  # random weights are known by the config alone
        weights = ()
    parts = {"tokenizer": TOKENIZER_FILES, "base_model": (*weights, *CONFIG_FILES)}
    made = {kind: _located(folder, name, said, licence, patterns) for kind, patterns in parts.items()}
    return tuple(Manifest(kind=kind, items=[item]) for kind, item in made.items())  # type: ignore[return-value]


def _located(folder: Path, name: str, said: str, licence: str, patterns: Iterable[str]) -> Located:
    files = file_entries(folder, _glob(folder, patterns))
    return Located(name=name, location=str(folder), source=said, licence=licence, files=files)


def _glob(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
