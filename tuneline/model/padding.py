"""Prompts of different lengths as one batch that is answered: padding stands on the left."""

from collections.abc import Sequence

import torch


def pad_left(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and mask, [rows, width of the longest].

    Args:
        rows: Token ids of each prompt.
        pad: Token to fill rows with.
        device: Where both are to lie.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
