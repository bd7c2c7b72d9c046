"""Training state that survives the process: checkpoints under the state root, identified by the inputs of the training.

A checkpoint is written into a temporary folder, hashed file by file and renamed, so it is either complete or absent. It
is loaded only after its hashes are verified. It stores the trainable parameters by name for every method, and the state
of transformers' Trainer (optimizer, schedule, random number generators, position in the data), so a resumed training
ends with bitwise identical weights on a CPU.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneline import filesystem, state
from tuneline.errors import RecipeError, StoppedError
from tuneline.identity import digest, sha256_of

logger = logging.getLogger(__name__)

STATE_FILE, HASHES_FILE, UNFINISHED_FOLDER = "training.json", "sha256.json", "unfinished"
CHECKPOINT_PREFIX, FINISHED_NOTE = "checkpoint-", "finished"
BASE_MODEL_NOTE, TOKENIZER_NOTE = "base_model", "tokenizer"
"""Notes with the manifests of the training, so that a checkpoint can be loaded without its recipe."""


@dataclass(frozen=True)
class TrainingState:
    """The state folder of one training; trainings with the same rows, model and recipe share it."""

    identity: dict[str, Any]
    """Inputs of the training: hashes of rows and base model, and the configs that affect the weights."""

    @cached_property
    def folder(self) -> Path:
        """Path of the folder; created with the first checkpoint or note."""
        return state.root() / "training" / digest(self.identity)[:32]

    @property
    def unfinished_folder(self) -> Path:
        """Path of the folder that contains a checkpoint until it is complete."""
        return self.folder / UNFINISHED_FOLDER

    def latest(self) -> Path | None:
        """Return the latest complete checkpoint, or None."""
        return next((path for path in self._checkpoints() if find_damage(path) is None), None)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the training, so that no other process runs it; the lock of a dead process is released.

        Raises:
            StoppedError: Another process is running this training.
        """
        lock = state.lock(f"training-{self.folder.name}", timeout_seconds=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoppedError(
                "Another process on this machine is running this training (same recipe, same rows; state: "
                f"{self.folder}). Wait until it finishes, then run the command again: its result is reused."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def check_resume_from(self, name: str | None) -> None:
        """Check that the training named by `train.resume_from` is this one.

        Args:
            name: Name of a training or a prefix of it; None skips the check.

        Raises:
            RecipeError: No unfinished training has this name, or its recipe differs.
        """
        if name is None:
            return
        trainings = sorted(path.parent for path in self.folder.parent.glob(f"*/{STATE_FILE}"))
        matches = [path for path in trainings if path.name.startswith(name)]
        if len(matches) != 1 or not any(matches[0].glob(f"{CHECKPOINT_PREFIX}*")):
            names = ", ".join(path.name for path in trainings if any(path.glob(f"{CHECKPOINT_PREFIX}*"))) or "none"
            raise RecipeError(
                f"train.resume_from: no unfinished training {name!r} (unfinished trainings: {names}). Correct the "
                "name, or remove it: an unfinished training of this recipe resumes automatically."
            )
        if matches[0] != self.folder:
            other = read_state(matches[0] / STATE_FILE).get("identity", {})
            raise RecipeError(
                f"train.resume_from: {name} was started with another recipe: "
                f"{'; '.join(describe_differences(other, self.identity))}. Use the same recipe, or remove resume_from "
                "to start a new training."
            )

    def discard_damaged(self) -> None:
        """Delete checkpoints whose hashes do not match, with a warning; they must not count towards the limit."""
        for path in self._checkpoints():
            if file := find_damage(path):
                logger.warning("Discarded %s: %s is missing or was modified. Using the one before it.", path.name, file)
                shutil.rmtree(path)

    def finalize(self, folder: Path, keep: int) -> Path:
        """Complete a checkpoint: hash its files, rename it, then delete all but the `keep` latest checkpoints."""
        hashes = {
            str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
        }
        (folder / HASHES_FILE).write_text(json.dumps(hashes))
        for path in folder.rglob("*"):
            filesystem.fsync(path)
        target = self.folder / folder.name
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        filesystem.fsync(self.folder)
        for checkpoint in self._checkpoints()[keep:]:
            shutil.rmtree(checkpoint)
        return target

    def discard_unfinished(self) -> None:
        """Delete an incomplete checkpoint, left by a killed process or a full disk."""
        shutil.rmtree(self.unfinished_folder, ignore_errors=True)

    def get_note(self, name: str) -> str | None:
        """Return the note with this name, or None."""
        path = self.folder / STATE_FILE
        note = read_state(path).get("notes", {}).get(name) if path.exists() else None
        return None if note is None else str(note)

    def set_note(self, name: str, value: str) -> None:
        """Store a short text with the checkpoints, for example the id of the MLflow run with the curves."""
        path = self.folder / STATE_FILE
        notes = read_state(path).get("notes", {}) if path.exists() else {}
        filesystem.write_atomic(
            path, json.dumps({"identity": self.identity, "notes": {**notes, name: value}}, indent=1)
        )

    def unfinished_trainings(self) -> list[str]:
        """Return the other unfinished trainings of the same rows and base model, with the recipe keys that differ."""
        trainings = []
        for path in sorted(self.folder.parent.glob(f"*/{STATE_FILE}")):
            other = read_state(path).get("identity", {})
            same = all(other.get(name) == self.identity.get(name) for name in ("rows", "base_model"))
            finished = FINISHED_NOTE in read_state(path).get("notes", {})
            has_checkpoint = any(path.parent.glob(f"{CHECKPOINT_PREFIX}*"))
            if same and not finished and path.parent != self.folder and has_checkpoint:
                trainings.append(f"{path.parent.name} ({'; '.join(describe_differences(other, self.identity))})")
        return trainings

    def mark_finished(self) -> None:
        """Keep only the latest checkpoint, and no longer list this training as unfinished."""
        for checkpoint in self._checkpoints()[1:]:
            shutil.rmtree(checkpoint)
        self.set_note(FINISHED_NOTE, "yes")

    def delete(self) -> None:
        """Delete the state of this training."""
        delete_state(self.folder.name)

    def _checkpoints(self) -> list[Path]:
        """Return all checkpoints, latest first."""
        return sorted(self.folder.glob(f"{CHECKPOINT_PREFIX}*"), key=checkpoint_step, reverse=True)


def delete_state(name: str) -> None:
    """Delete the state of a training, after its result is stored.

    Args:
        name: `TrainingReport.state`.
    """
    shutil.rmtree(state.root() / "training" / Path(name).name, ignore_errors=True)


def checkpoint_step(path: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def describe_differences(other: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one text per key whose values differ between two identities."""
    differences = []
    for name in sorted({*other, *current}):
        old, new = other.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += describe_differences(old, new, f"{prefix}{name}.")
        elif old != new:
            differences.append(f"{prefix}{name}: {old!r} there, {new!r} here")
    return differences


def find_damage(path: Path, only: Collection[str] = ()) -> str | None:
    """Return the first file of a checkpoint that is missing or does not match its hash, or None.

    Args:
        path: Folder of the checkpoint.
        only: Names of the files to check; by default all.
    """
    hashes = read_state(path / HASHES_FILE) if (path / HASHES_FILE).exists() else {}
    if not hashes or not set(only) <= hashes.keys():
        return HASHES_FILE
    return next(
        (name for name in only or hashes if not (path / name).exists() or sha256_of(path / name) != hashes[name]), None
    )


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of a small JSON file; empty if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
