"""Left padding: batch prompts of different lengths for generation."""

from collections.abc import Sequence

import torch


def pad_left(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, [rows, length of the longest].

    Args:
        rows: Token ids of each prompt.
        pad: Padding token id.
        device: Device of both tensors.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
