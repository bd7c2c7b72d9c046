"""Weights of the best evaluation, kept in a file named by its step."""

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
    """The best evaluation so far."""

    loss: float = float("inf")
    step: int = 0
    worse_since: int = 0
    """Evaluations since the best."""

    sha256: str = ""
    """Of the file that holds its weights; empty where they are not kept."""


class BestWeights:
    """The weights of the best evaluation, in a file named by its step, and where that evaluation stands.

    Each checkpoint takes a link to the file along, so that its hashes cover the file, and a training that goes on from
    it has the weights of the very evaluation that it records.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.standing = BestEvaluation()
        self._warned = False

    @property
    def file(self) -> Path:
        """Where the weights of the best evaluation lie, if they are kept."""
        return self._folder / f"best-{self.standing.step}.safetensors"

    def state(self) -> dict[str, Any]:
        """Return where it stands, for a checkpoint."""
        return asdict(self.standing)

    def save(self, checkpoint: Path) -> None:
        """Put the weights into a checkpoint, as a link where the file system has links."""
        if self.standing.sha256:
            filesystem.link_or_copy(self.file, checkpoint / self.file.name)

    def restore(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Go on from where a checkpoint stood, with the weights that it holds."""
        self.standing = BestEvaluation(**state)
        _drop(self._folder.glob("best*"))
        if self.standing.sha256:
            filesystem.link_or_copy(checkpoint / self.file.name, self.file)

    def record(self, loss: float, step: int) -> None:
        """Note an evaluation that is better than those before; its weights are not kept yet."""
        self.standing = BestEvaluation(loss, step)

    def keep(self, trained: dict[str, torch.Tensor]) -> None:
        """Write the weights, whole or not at all; a full disk is reported once, and training goes on without them."""
        try:
            with filesystem.atomic_path(self.file) as unfinished:
                save_file({name: part.detach().contiguous() for name, part in trained.items()}, unfinished)
            filesystem.fsync(self._folder)
            self.standing.sha256 = sha256_of(self.file)
        except WRITE_ERRORS as error:
            if not is_full(error, self._folder):
                raise
            self._warn()
        kept = [self.file] if self.standing.sha256 else []
        _drop(path for path in self._folder.glob("best*") if path not in kept)

    def restore_weights(self, trained: dict[str, torch.Tensor]) -> None:
        """Give the trained parameters their best values.

        Raises:
            ProofError: The file was changed since it was written.
        """
        if not self.file.is_file() or sha256_of(self.file) != self.standing.sha256:
            raise VerificationError(
                f"train.load_best_model_at_end: {self.file} with the weights of step {self.standing.step} is missing "
                "or not as it was written. Give the command again: the training goes on from a whole checkpoint."
            )
        saved = load_file(self.file)
        with torch.no_grad():
            for name, part in trained.items():
                part.copy_(saved[name])

    def _warn(self) -> None:
        if not self._warned:
            logger.warning(
                "The disk of %s is full, so the weights of step %d, the best so far, could not be kept. Training goes "
                "on: free some space before the next evaluation.",
                self._folder,
                self.standing.step,
            )
        self._warned = True


def _drop(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()
