"""The model of a checkpoint, also while its training is running: base model and the weights trained so far.

The files are hard-linked into a folder of the caller first, so the trainer can delete the checkpoint meanwhile. The
hashes are verified. The result is a folder that `tuneline.model.load.load_model` loads: an adapter with its base model,
or a whole model.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from tuneline import filesystem
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.data.tokenizer import new_tokens
from tuneline.errors import SourceError
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, value_head, verification
from tuneline.model.load import load_for_merge
from tuneline.model.methods import families
from tuneline.model.source import adapter_folders
from tuneline.train.checkpoint import training_state
from tuneline.train.checkpoint.resumable_trainer import EXTRA_STATE_FILE, WEIGHTS_FILE
from tuneline.train.objectives.reward import REWARD_HEAD

ATTEMPTS = 5
"""Number of checkpoints to try, in case the trainer deletes each of them while it is linked."""

HEADS = (f"{REWARD_HEAD}.", f"{value_head.MODULE_NAME}.")
"""Prefixes of the parameters that an objective adds to the model."""

NEEDED_FILES = (WEIGHTS_FILE, EXTRA_STATE_FILE)


@dataclass(frozen=True)
class CheckpointModel:
    """The model of a checkpoint."""

    folder: Path
    """Folder with the model: an adapter bundle or a whole model, and the tokenizer."""

    adapter: Path | None
    """Folder with the adapter alone; None if the method trains the weights of the base model."""

    base_model: Manifest
    training: str
    """Name of the training: its folder below the state root."""

    step: int
    """Optimizer step of the checkpoint."""


def build_model(checkpoint: Path, target: Path, base: tuple[Manifest, Manifest] | None = None) -> CheckpointModel:
    """Write the model of a checkpoint into a folder.

    Args:
        checkpoint: Folder of a checkpoint, or of a training, for its latest checkpoint.
        target: Folder to create.
        base: Manifests of tokenizer and base model; by default those that the training recorded.

    Raises:
        SourceError: There is no complete checkpoint, or the base model is missing, changed or another one.
    """
    snapshot = target / "checkpoint"
    name = _link_checkpoint(checkpoint, snapshot)
    training = checkpoint.parent if checkpoint.name.startswith(training_state.CHECKPOINT_PREFIX) else checkpoint
    record = training_state.read_state(training / training_state.STATE_FILE)
    tokenizer, base_model = base or _recorded_manifests(training, record)
    _check_identity(training, record, tokenizer, base_model)
    verification.check_manifests(tokenizer, base_model)
    step = training_state.checkpoint_step(Path(name))
    adapter = _write_trained(snapshot, target, record["identity"], tokenizer, base_model)
    shutil.rmtree(snapshot)
    folder = target / "model"
    for file in tokenizer.only().paths():
        (folder / file.name).unlink(missing_ok=True)
        filesystem.link_or_copy(file, folder / file.name)
    return CheckpointModel(folder, adapter, base_model, training.name, step)


def _link_checkpoint(checkpoint: Path, snapshot: Path) -> str:
    """Link the files of a checkpoint, or of the latest one; return the name of its folder."""
    for _ in range(ATTEMPTS):
        source = _select(checkpoint)
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        try:
            for name in (*NEEDED_FILES, training_state.HASHES_FILE):
                filesystem.link_or_copy(source / name, snapshot / name)
        except FileNotFoundError:
            if source.is_dir():
                raise SourceError(f"{source} is not complete. Use another checkpoint of the training.") from None
            continue  # the trainer deleted it
        if file := training_state.find_damage(snapshot, only=NEEDED_FILES):
            raise SourceError(f"{source}: {file} was modified. Use another checkpoint of the training.")
        return source.name
    raise SourceError(f"{checkpoint} has no checkpoint any more: the training deleted it. Run the command again.")


def _select(checkpoint: Path) -> Path:
    if checkpoint.name.startswith(training_state.CHECKPOINT_PREFIX):
        return checkpoint
    paths = list(checkpoint.glob(f"{training_state.CHECKPOINT_PREFIX}*"))
    if not paths:
        raise SourceError(f"{checkpoint} has no checkpoint. Wait for the first one (`train.save_steps`).")
    return max(paths, key=training_state.checkpoint_step)


def _recorded_manifests(training: Path, record: dict[str, Any]) -> tuple[Manifest, Manifest]:
    """Return the manifests of tokenizer and base model that the training recorded."""
    notes = record.get("notes", {})
    names = (training_state.TOKENIZER_NOTE, training_state.BASE_MODEL_NOTE)
    if missing := [name for name in names if name not in notes]:
        raise SourceError(
            f"{training / training_state.STATE_FILE} does not record the location of {' and '.join(missing)}: the "
            "training was started by an earlier version. Give its base model with --base."
        )
    tokenizer, base_model = (Manifest.model_validate_json(notes[name]) for name in names)
    return tokenizer, base_model


def _check_identity(training: Path, record: dict[str, Any], tokenizer: Manifest, base_model: Manifest) -> None:
    identity = record.get("identity", {})
    if identity.get("base_model") != base_model.content_hash():
        raise SourceError(
            f"{training} was trained on another base model: content hash {identity.get('base_model')}, but "
            f"{base_model.items[0].location} has {base_model.content_hash()}. Give the base model of its recipe."
        )
    if identity.get("tokenizer") not in (None, tokenizer.content_hash()):
        raise SourceError(
            f"{training} was trained with another tokenizer or chat template than that of "
            f"{tokenizer.items[0].location}. Run the training for a few steps more, so that it records its tokenizer, "
            "or serve the model that it registers."
        )


def _write_trained(
    snapshot: Path, target: Path, identity: dict[str, Any], tokenizer: Manifest, base_model: Manifest
) -> Path | None:
    """Load the base model, set the trained weights, and save adapter and model; return the folder of the adapter."""
    load = LoadStepConfig.model_validate(identity["load"])
    method: Any = TypeAdapter(Method).validate_python(identity["method"])
    family, folder = families[method.type], target / "model"
    base = load_for_merge(base_model, tokenizer, load, "eager")
    if "continue" in load.uses:
        model = family.attach_saved(base, adapter_folders(base_model)[-1], trainable=True)
    else:
        new_ids = tuple(new_tokens.new_token_ids(Path(tokenizer.only().location)))
        model = family.attach(base, method, total_steps=1, new_ids=new_ids)
    head = _set_weights(model, load_file(snapshot / WEIGHTS_FILE), snapshot)
    family.load_extra_state(model, torch.load(snapshot / EXTRA_STATE_FILE, weights_only=True))
    saved = target / "adapter" if family.kind == "adapter" else folder
    saved.mkdir(parents=True)
    family.save(model, saved, base_name=base_model.items[0].name)
    if head:
        save_file(head, saved / value_head.HEAD_FILE)
    if family.kind != "adapter":
        return None
    folder.mkdir()
    adapter_bundle.write_bundle(folder, saved, base_model, load)
    return saved


def _set_weights(model: Any, weights: dict[str, torch.Tensor], snapshot: Path) -> dict[str, torch.Tensor]:
    """Set the trained parameters; return the weights of a reward head, which is stored next to the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in parameters.keys() & weights.keys():
            parameters[name].copy_(weights[name])
    others = sorted(weights.keys() - parameters.keys())
    head = {name.removeprefix(f"{REWARD_HEAD}."): weights[name] for name in others if name.startswith(HEADS[0])}
    _check_complete(snapshot, model, weights.keys(), others)
    return head


def _check_complete(snapshot: Path, model: Any, trained: Iterable[str], others: list[str]) -> None:
    """Check that each trainable parameter has a value, and that only the heads of objectives have no parameter."""
    unknown = [name for name in others if not name.startswith(HEADS)]
    missing = {name for name, part in model.named_parameters() if part.requires_grad} - set(trained)
    if names := [*unknown, *sorted(missing)]:
        raise SourceError(
            f"{snapshot.parent}: the checkpoint does not fit its method at {names[0]}. Use another checkpoint."
        )
