"""`segment` attention for packed rows: examples attend only to themselves.

It computes one causal attention per example, instead of one over the whole row with a block mask, most of which would
be masked (Kundu et al. 2024, arXiv:2407.09105). Masks that bounds cannot express (a window shorter than the examples, a
cache) are computed like `sdpa`; features that `sdpa` lacks too (softcap, sinks) are rejected.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tuneline.errors import VerificationError
from tuneline.model.attention import bounds

# B batch, H heads, K key heads, T tokens of a row, D head size

UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias")
"""Arguments of attention functions that `segment` and `s2` do not support."""


def segment_attention(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each example; returns [B, T, H, D].

    Raises:
        VerificationError: The architecture uses an unsupported argument.
    """
    check_arguments(other, "load.attention: segment", "Set load.attention: eager")
    square = bounds.is_square(attention_mask)
    if square or not is_causal_layer(module, is_causal) or (attention_mask is None and cu_seq_lens_q is None):
        mask = bounds.mask_other_examples(attention_mask, cu_seq_lens_q) if square else attention_mask
        options = {"dropout": dropout if module.training else 0.0, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query_BHTD, key_BKTD, value_BKTD, mask, **options)
    options = {"dropout_p": dropout if module.training else 0.0, "scale": scaling}
    rows = bounds.bounds_per_row(attention_mask, cu_seq_lens_q, query_BHTD.shape[2])
    pieces = [
        bounds.attend_within_bounds(query_BHTD[r], key_BKTD[r], value_BKTD[r], ends, **options) for r, ends in rows
    ]
    return torch.cat(pieces).transpose(1, 2).contiguous(), None


def is_causal_layer(module: nn.Module, is_causal: bool | None) -> bool:
    """Return whether a layer is causal; the argument `is_causal` of its attention call takes precedence."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def check_arguments(arguments: dict[str, Any], key: str, remedy: str) -> None:
    """Reject an architecture whose attention uses unsupported arguments.

    Raises:
        VerificationError: An unsupported argument is set.
    """
    if names := [name for name in UNSUPPORTED_ARGUMENTS if arguments.get(name) is not None]:
        raise VerificationError(f"{key} does not support {', '.join(names)}, which this architecture uses. {remedy}.")


AttentionInterface.register("segment", segment_attention)
AttentionMaskInterface.register("segment", bounds.bounds_mask)
