"""The interface of an objective: rows in, a loss summed over items out, with metrics."""

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
"""Computes the cross entropies (nats) [N] of the trained tokens, and the positions [N] that predict them."""


@dataclass
class LossOutput:
    """The loss and metrics of one forward pass."""

    total: torch.Tensor
    """Loss, summed over the items of the pass."""

    num_items: int
    """Number of tokens, pairs or answers that the objective averages over."""

    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> sum and count of further metrics, like `rewards/accuracies`."""


class Objective:
    """Base class of objectives; the registry contains the classes, named by `train.objective`."""

    name: ClassVar[str]

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    def attach(self, model: Any, seed: int) -> None:
        """Add the parameters of the objective to the model (a reward head); by default none."""

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Remove the parameters of `attach` before the method saves its own, and return them; by default none."""
        return {}

    def state(self) -> dict[str, float]:
        """Return the state of the objective for a checkpoint; by default empty."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Restore the state of a checkpoint."""

    @property
    def needs_reference_columns(self) -> bool:
        """Whether columns are computed with the initial model before the first step."""
        return False

    def compute_reference_columns(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Compute columns with the initial model: split -> column -> one value per row.

        Args:
            rows: Rows by split.
            token_losses: Of the model in evaluation mode, without gradients.
            device: Of the model.
        """
        return {}

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Concatenate the rows of a batch into the inputs of one forward pass, without padding."""
        return collate([preference_rows.flatten_row(row) for row in rows])

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of items that the loss is averaged over."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Compute the loss of one forward pass.

        Args:
            model: With its adapter.
            inputs: Of `collate`, on the device of the model.
            token_losses: Computes cross entropies at the trained positions.
        """
        raise NotImplementedError


objectives: Registry[type[Objective]] = Registry("objective")


def build_objective(config: TrainingConfig) -> Objective:
    """Return the objective of a training config."""
    return objectives[config.objective](config)


def count_trained_tokens(inputs: Inputs) -> int:
    """Return the number of trained tokens of a forward pass."""
    return int((inputs["labels"][0, 1:] != IGNORE_INDEX).sum())


def count_segments(inputs: Inputs) -> int:
    """Return the number of segments of a forward pass."""
    return len(inputs["cu_seq_lens_q"]) - 1


def logps_by_segment(inputs: Inputs, losses_N: torch.Tensor, keep_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed log-probabilities (nats) of the answers, and their numbers of tokens, both [segments]."""
    bounds = inputs["cu_seq_lens_q"].to(losses_N.device)
    segment_N = torch.bucketize(keep_N, bounds, right=True) - 1
    zeros = torch.zeros(len(bounds) - 1, dtype=losses_N.dtype, device=losses_N.device)
    return zeros.index_add(0, segment_N, -losses_N), zeros.index_add(0, segment_N, torch.ones_like(losses_N))
