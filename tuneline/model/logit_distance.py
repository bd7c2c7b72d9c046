"""How far two sets of logits lie apart: the measure by which proofs tell rounding from another computation."""

import torch


def max_relative_diff(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of logits, as a share of the spread of the first; NaN where some are NaN."""
    return float((one - other).abs().max() / one.std())
