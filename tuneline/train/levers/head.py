"""Head and cross entropy at trained positions, in chunks, with the gradient computed in the forward pass.

The logits of a whole row are the largest tensor of a step (tokens times vocabulary). Here only the logits of one chunk
exist at a time, and the softmax of the loss is turned directly into the gradient (as in Liger Kernel, Hsu et al. 2024,
arXiv:2410.10989; Wijmans et al. 2024, arXiv:2411.09009). The head must be frozen and plain: no gradient is computed for
it.
"""

from typing import Any

import torch
from torch import nn

from tuneline.model.methods.base import MethodFamily
from tuneline.model.positions import prediction_positions

# N trained positions, D width, V vocabulary

CHUNK_SIZE = 384
"""Positions per chunk of logits; large enough for a matrix product at full speed (docs/log.md)."""

CACHE_CHUNK_SIZE = 8
"""Positions whose logits are turned into their gradient at a time; they fit into the cache of a CPU."""

LOGIT_SCALING_KEYS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "logit_soft_cap",
)
"""Keys of model configs that change the logits after the head."""


class _HeadLoss(torch.autograd.Function):
    """Cross entropies (nats) [N]."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        losses_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(labels_N), CHUNK_SIZE):
            hidden, labels = hidden_ND[start : start + CHUNK_SIZE], labels_N[start : start + CHUNK_SIZE, None]
            logits = hidden.to(weight_VD.dtype) @ weight_VD.T
            for row in range(0, len(labels), CACHE_CHUNK_SIZE):
                end = min(row + CACHE_CHUNK_SIZE, len(labels))
                logits_float32 = logits[row:end].float()
                losses_N[start + row : start + end] = _loss_and_gradient_(logits_float32, labels[row:end])
                if logits_float32.dtype != logits.dtype:
                    logits[row:end] = logits_float32
            if gradient_ND is not None:
                gradient_ND[start : start + CHUNK_SIZE] = logits @ weight_VD
        ctx.save_for_backward(gradient_ND)
        return losses_N

    @staticmethod
    def backward(ctx: Any, gradient_N: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * gradient_N[:, None].to(gradient_ND.dtype), None, None


def _loss_and_gradient_(logits_NV: torch.Tensor, labels_N1: torch.Tensor) -> torch.Tensor:
    """Return the cross entropies (nats) [N], and overwrite the logits with their gradient."""
    label_logits = logits_NV.gather(1, labels_N1)
    max_logits = logits_NV.amax(-1, keepdim=True)
    sums = logits_NV.sub_(max_logits).exp_().sum(-1, keepdim=True)
    logits_NV.div_(sums).scatter_add_(1, labels_N1, torch.full_like(label_logits, -1))
    return (max_logits + sums.log() - label_logits)[:, 0]


def unsupported_reason(family: MethodFamily, model: Any) -> str:
    """Return why the loss of this model cannot be computed in chunks, or an empty text."""
    base = _base(model)
    head = base.get_output_embeddings()
    config = base.config.get_text_config()
    scaling = [name for name in LOGIT_SCALING_KEYS if getattr(config, name, None) not in (None, 1, 1.0)]
    if type(family).logits is not MethodFamily.logits:
        return f"method {family.name} computes its own logits"
    if type(head) is not nn.Linear or head.bias is not None:
        return "the head is not a plain matrix"
    if head.weight.requires_grad:
        return "the head is trained"
    if scaling:
        return f"the model changes its logits ({scaling[0]})"
    return "" if base.base_model is not base else "the model cannot be run without its head"


def token_losses(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropies (nats) [N] of the trained tokens, and the positions [N] that predict them.

    Args:
        model: With its adapter.
        inputs: `input_ids` and `labels` [1, tokens], and the boundaries of a packed row.
    """
    base = _base(model)
    labels = inputs["labels"][0]
    keep = prediction_positions(inputs)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    hidden_ND = base.base_model(**rest).last_hidden_state[0, keep]
    return _HeadLoss.apply(hidden_ND, base.get_output_embeddings().weight, labels[keep + 1].long()), keep


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
