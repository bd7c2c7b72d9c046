"""Training state that survives the process: whole checkpoints under the state root, found by what is trained.

A checkpoint is written aside, hashed file by file, and renamed: there is a whole one or none. It is read only after its
hashes were compared. It holds what was trained by name, whatever the method, beside what transformers' Trainer keeps
(optimizer, schedule, random numbers, place in the data), so that going on ends in the same weights bit by bit on a CPU.
"""

import json
import logging
import shutil
from collections.abc import Iterator
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


@dataclass(frozen=True)
class TrainingState:
    """The folder of one training; two trainings of the same rows, model and recipe share it."""

    identity: dict[str, Any]
    """What is trained, and how: hashes of rows and base model, and the configs that shape the weights."""

    @cached_property
    def folder(self) -> Path:
        """Where it lies; made with the first checkpoint."""
        return state.root() / "training" / digest(self.identity)[:32]

    @property
    def unfinished_folder(self) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.folder / UNFINISHED_FOLDER

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint."""
        return next((path for path in self._checkpoints() if _broken(path) is None), None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training the same; a process that dies lets go.

        Raises:
            StoppedError: One does.
        """
        lock = state.lock(f"training-{self.folder.name}", timeout_seconds=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoppedError(
                f"Another process on this machine trains this recipe on these rows right now (its state is "
                f"{self.folder}). Wait until it is done, then give the command again: what it made is taken."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def check(self, wanted: str | None) -> None:
        """Refuse to go on with a training that is not this one.

        Args:
            wanted: Its name, or the beginning of it; None asks for nothing.

        Raises:
            RecipeError: There is none of that name, or it is of another recipe, with what differs.
        """
        if wanted is None:
            return
        known = sorted(path.parent for path in self.folder.parent.glob(f"*/{STATE_FILE}"))
        found = [path for path in known if path.name.startswith(wanted)]
        if len(found) != 1 or not any(found[0].glob(f"{CHECKPOINT_PREFIX}*")):
            names = ", ".join(path.name for path in known if any(path.glob(f"{CHECKPOINT_PREFIX}*"))) or "none"
            raise RecipeError(
                f"train.resume_from: there is no unfinished training {wanted!r} (there are: {names}). Correct the "
                "name, or leave it out: a training of this recipe is found by itself."
            )
        if found[0] != self.folder:
            theirs = _read(found[0] / STATE_FILE).get("identity", {})
            raise RecipeError(
                f"train.resume_from: {wanted} was begun with another recipe: "
                f"{'; '.join(describe_differences(theirs, self.identity))}. Make the recipe equal, or leave resume_from out to "
                "begin anew."
            )

    def discard_damaged(self) -> None:
        """Drop checkpoints that fail their hashes, and say so: they must not count among those that are kept."""
        for path in self._checkpoints():
            if wrong := _broken(path):
                logger.warning(
                    "%s of %s is not as it was written, so the checkpoint before it is taken.", wrong, path.name
                )
                shutil.rmtree(path)

    def finalize(self, written: Path, keep: int) -> Path:
        """Make a checkpoint whole: hash it, give it its name, and only then drop those beyond `keep`."""
        hashes = {
            str(path.relative_to(written)): sha256_of(path) for path in sorted(written.rglob("*")) if path.is_file()
        }
        (written / HASHES_FILE).write_text(json.dumps(hashes))
        for path in written.rglob("*"):
            filesystem.fsync(path)
        target = self.folder / written.name
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)
        filesystem.fsync(self.folder)
        for old in self._checkpoints()[keep:]:
            shutil.rmtree(old)
        return target

    def discard_unfinished(self) -> None:
        """Drop what was being written when a process died, or the disk was full."""
        shutil.rmtree(self.unfinished_folder, ignore_errors=True)

    def told(self, name: str) -> str | None:
        """Return what was remembered under a name."""
        path = self.folder / STATE_FILE
        found = _read(path).get("notes", {}).get(name) if path.exists() else None
        return None if found is None else str(found)

    def set_note(self, name: str, value: str) -> None:
        """Keep a short text beside the checkpoints, like the id of the run that shows the curves."""
        path = self.folder / STATE_FILE
        notes = _read(path).get("notes", {}) if path.exists() else {}
        filesystem.write_atomic(
            path, json.dumps({"identity": self.identity, "notes": {**notes, name: value}}, indent=1)
        )

    def others(self) -> list[str]:
        """Name unfinished trainings of the same rows and base model by what differs in their recipe."""
        found = []
        for path in sorted(self.folder.parent.glob(f"*/{STATE_FILE}")):
            theirs = _read(path).get("identity", {})
            same = all(theirs.get(name) == self.identity.get(name) for name in ("rows", "base_model"))
            finished = FINISHED_NOTE in _read(path).get("notes", {})
            if same and not finished and path.parent != self.folder and any(path.parent.glob(f"{CHECKPOINT_PREFIX}*")):
                found.append(f"{path.parent.name} ({'; '.join(describe_differences(theirs, self.identity))})")
        return found

    def finish(self) -> None:
        """Keep the newest checkpoint until what was trained is stored elsewhere, and no longer count as unfinished."""
        for old in self._checkpoints()[1:]:
            shutil.rmtree(old)
        self.set_note(FINISHED_NOTE, "yes")

    def remove(self) -> None:
        """Forget the training."""
        delete_state(self.folder.name)

    def _checkpoints(self) -> list[Path]:
        """Return checkpoints, newest first."""
        return sorted(self.folder.glob(f"{CHECKPOINT_PREFIX}*"), key=checkpoint_step, reverse=True)


def delete_state(name: str) -> None:
    """Drop a training's state, once what came of it is stored.

    Args:
        name: As in `TrainingReport.state`.
    """
    shutil.rmtree(state.root() / "training" / Path(name).name, ignore_errors=True)


def checkpoint_step(path: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def describe_differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """Say in words which keys of two identities differ."""
    found = []
    for name in sorted({*theirs, *ours}):
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += describe_differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name}: {one!r} there, {other!r} here")
    return found


def _broken(path: Path) -> str | None:
    """Return the file that is missing or has other bytes than were written, or None."""
    if not (path / HASHES_FILE).exists():
        return HASHES_FILE
    hashes = _read(path / HASHES_FILE)
    if not hashes:
        return HASHES_FILE
    return next(
        (name for name, wanted in hashes.items() if not (path / name).exists() or sha256_of(path / name) != wanted),
        None,
    )


def _read(path: Path) -> dict[str, Any]:
    """Return what a small file of ours holds; nothing where it was damaged."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
