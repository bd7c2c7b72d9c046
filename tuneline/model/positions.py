"""Positions at which the trained tokens of a row are predicted."""

from typing import Any

import torch

from tuneline.data.schema import IGNORE_INDEX


def prediction_positions(inputs: dict[str, Any]) -> torch.Tensor:
    """Return the positions [N] at which the trained tokens of a row are predicted: one before each token.

    Args:
        inputs: Model inputs with `labels`, [1, tokens].
    """
    return (inputs["labels"][0, 1:] != IGNORE_INDEX).nonzero()[:, 0]
