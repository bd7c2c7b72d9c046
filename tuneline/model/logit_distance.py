"""Distance between two sets of logits, used to tell rounding from a different computation."""

import torch


def max_relative_diff(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest difference of logits divided by the standard deviation of the first; NaN if any is NaN."""
    return float((expected - actual).abs().max() / expected.std())
