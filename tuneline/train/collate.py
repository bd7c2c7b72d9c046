"""Padding-free collation: the rows of a batch are concatenated, and attention stays within each example."""

from typing import Any

import torch

from tuneline.model import attention


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate rows into one.

    Returns:
        `input_ids` and `labels`, both [1, tokens], and the arguments that mark the boundaries of the examples.
    """
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]
    lengths = [length for row in rows for length in row["lengths"]]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), **attention.packed_inputs(lengths)}


def move_to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the inputs with all tensors on a device."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
