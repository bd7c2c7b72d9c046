"""The interface of an objective: rows in, a loss summed over items out, with figures for whoever watches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from datasets import Dataset

from tuneline.config.training.base import TrainingConfig
from tuneline.data.schema import IGNORE_INDEX
from tuneline.data.tokenization import preference_rows
from tuneline.registry import Registry
from tuneline.train.collate import collate

# N trained positions

Inputs = dict[str, Any]
DatasetSplits = dict[str, Dataset]
TokenLossFunction = Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]]
"""Computes cross entropies (nats) [N] of a row's trained tokens, and the positions [N] that they are predicted at."""


@dataclass
class LossOutput:
    """What one pass came to."""

    total: torch.Tensor
    """Loss, summed over the items of the pass."""

    num_items: int
    """Tokens or pairs or answers: what the objective averages over."""

    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> sum and number of what is watched beside the loss, like `rewards/accuracies`."""


class Objective:
    """What a training minimises; entries of the registry are classes, named by `train.objective`."""

    name: ClassVar[str]

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    def attach(self, model: Any, seed: int) -> None:
        """Add what is trained beside the method's own parameters (a reward head)."""

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Take away what `attach` added, before the method saves its own, and return its weights; mostly none."""
        return {}

    def state(self) -> dict[str, float]:
        """Return what the objective has learned for itself, for a checkpoint; mostly nothing."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from where a checkpoint stood."""

    @property
    def needs_reference_columns(self) -> bool:
        """Something is computed before the first step."""
        return False

    def prepare(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Compute what the model as it starts says of the rows: split -> column -> a value a row.

        Args:
            rows: By split.
            token_losses: Of the model, in evaluation mode, without gradients.
            device: Of the model.
        """
        return {}

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Join rows of a batch into the inputs of one pass, without padding."""
        return collate([preference_rows.flatten_row(row) for row in rows])

    def num_items(self, inputs: Inputs) -> int:
        """Count what the loss of a pass is averaged over."""
        raise NotImplementedError

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Compute the loss of one pass.

        Args:
            model: With its adapter.
            inputs: Of `collate`, on the model's device.
            token_losses: Computes cross entropies at the trained positions.
        """
        raise NotImplementedError


objectives: Registry[type[Objective]] = Registry("objective")


def build_objective(config: TrainingConfig) -> Objective:
    """Return the objective that a recipe's `train` asks for."""
    return objectives[config.objective](config)


def count_trained_tokens(inputs: Inputs) -> int:
    """Count the trained tokens of a pass."""
    return int((inputs["labels"][0, 1:] != IGNORE_INDEX).sum())


def count_segments(inputs: Inputs) -> int:
    """Count the segments of a pass."""
    return len(inputs["cu_seq_lens_q"]) - 1


def logps_by_segment(inputs: Inputs, losses_N: torch.Tensor, keep_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (nats) of the answers, summed, and their numbers of tokens, both [segments]."""
    bounds = inputs["cu_seq_lens_q"].to(losses_N.device)
    owner_N = torch.bucketize(keep_N, bounds, right=True) - 1
    zeros = torch.zeros(len(bounds) - 1, dtype=losses_N.dtype, device=losses_N.device)
    return zeros.index_add(0, owner_N, -losses_N), zeros.index_add(0, owner_N, torch.ones_like(losses_N))
