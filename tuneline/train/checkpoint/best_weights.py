"""The weights of the best evaluation, stored in a file that is named after its step."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tuneline import filesystem
from tuneline.errors import VerificationError
from tuneline.identity import sha256_of
from tuneline.storage_errors import is_full
from tuneline.train.write_errors import WRITE_ERRORS

logger = logging.getLogger(__name__)


@dataclass
class BestEvaluation:
    """The best evaluation so far; stored in each checkpoint."""

    loss: float = float("inf")
    step: int = 0
    worse_since: int = 0
    """Number of evaluations since the best one."""

    sha256: str = ""
    """Hash of the file with its weights; empty if they are not stored."""


class BestWeights:
    """The weights of the best evaluation, with the loss and step of that evaluation.

    Each checkpoint contains a hard link to the file, so the hashes of the checkpoint cover it, and a resumed training
    has exactly the weights of the evaluation that the checkpoint records.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.evaluation = BestEvaluation()
        self._warned = False

    @property
    def file(self) -> Path:
        """Path of the weights of the best evaluation; the file exists only if they are stored."""
        return self._folder / f"best-{self.evaluation.step}.safetensors"

    def state(self) -> dict[str, Any]:
        """Return the best evaluation as a dictionary, for a checkpoint."""
        return asdict(self.evaluation)

    def save(self, checkpoint: Path) -> None:
        """Link the weights into a checkpoint; copy them if the file system does not support hard links."""
        if self.evaluation.sha256:
            filesystem.link_or_copy(self.file, checkpoint / self.file.name)

    def restore(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Restore the best evaluation of a checkpoint, with its weights."""
        self.evaluation = BestEvaluation(**state)
        _delete(self._folder.glob("best*"))
        if self.evaluation.sha256:
            filesystem.link_or_copy(checkpoint / self.file.name, self.file)

    def record(self, loss: float, step: int) -> None:
        """Record a new best evaluation; its weights are not stored yet."""
        self.evaluation = BestEvaluation(loss, step)

    def save_weights(self, trainable: dict[str, torch.Tensor]) -> None:
        """Write the weights atomically; if the disk is full, warn once and continue without them."""
        try:
            with filesystem.atomic_path(self.file) as unfinished:
                save_file({name: part.detach().contiguous() for name, part in trainable.items()}, unfinished)
            filesystem.fsync(self._folder)
            self.evaluation.sha256 = sha256_of(self.file)
        except WRITE_ERRORS as error:
            if not is_full(error, self._folder):
                raise
            self._warn()
        current = [self.file] if self.evaluation.sha256 else []
        _delete(path for path in self._folder.glob("best*") if path not in current)

    def restore_weights(self, trainable: dict[str, torch.Tensor]) -> None:
        """Copy the best weights into the trainable parameters.

        Raises:
            VerificationError: The file is missing or was modified.
        """
        if not self.file.is_file() or sha256_of(self.file) != self.evaluation.sha256:
            raise VerificationError(
                f"train.load_best_model_at_end: {self.file} with the weights of step {self.evaluation.step} is missing "
                "or was modified. Run the same command again: the training resumes from the latest complete checkpoint."
            )
        weights = load_file(self.file)
        with torch.no_grad():
            for name, part in trainable.items():
                part.copy_(weights[name])

    def _warn(self) -> None:
        if not self._warned:
            logger.warning(
                "The disk of %s is full, so the weights of step %d, the best so far, could not be saved. Training "
                "continues; free some space before the next evaluation.",
                self._folder,
                self.evaluation.step,
            )
        self._warned = True


def _delete(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()
