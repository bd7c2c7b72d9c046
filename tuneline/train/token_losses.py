"""Cross entropies of the trained tokens of a batch, computed with the model's own logits."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tuneline.model.methods.base import MethodFamily
from tuneline.model.positions import prediction_positions


def token_losses(family: MethodFamily, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropies (nats) [N] of the trained tokens, and the positions [N] that predict them."""
    labels = inputs["labels"][0]
    keep = prediction_positions(inputs)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    logits = family.logits(model, rest, keep)
    return cross_entropy(logits.float(), labels[keep + 1].long(), reduction="none"), keep
