"""`s2`: shifted sparse attention for training on long rows (S2-Attn of LongLoRA, Chen et al. 2023, arXiv:2309.12307).

Each example is split into groups. Half of the heads attend within the groups, the other half within groups shifted by
half a group, so that information moves between groups from layer to layer. The first shifted group is half as long: the
paper's code joins it with the end of the row, which would let it attend to the future. Each half of the heads is
attention within bounds, without a mask. Only training is sparse; in evaluation mode attention is full.

The group size depends on `tokenize.max_length`, not on the row: an example is treated the same alone, padded or packed.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from tuneline.errors import RecipeError, VerificationError
from tuneline.model.attention import bounds
from tuneline.model.attention.segment import check_arguments, is_causal_layer, segment_attention

# B batch, H heads, K key heads, T tokens of a row, D head size

REMEDY = "Remove load.s2_group_size_ratio"
GROUP_SIZE_ATTRIBUTE = "s2_group_size"
"""Attribute of each module, so that models in one process can differ and the saved config stays unchanged."""


def enable_shifted_attention(model: nn.Module, group_size_ratio: float, max_length: int) -> str:
    """Set the group size of shifted sparse attention; the attention implementation must be `s2`.

    Args:
        model: Model whose attention layers use `AttentionInterface` of transformers.
        group_size_ratio: Group length as a share of `max_length`.
        max_length: Maximum number of tokens of an example, `tokenize.max_length`.

    Returns:
        A description of the groups.

    Raises:
        RecipeError: The group is too short to be shifted.
    """
    size = int(group_size_ratio * max_length)
    if size < 2:
        raise RecipeError(
            f"load.s2_group_size_ratio: {group_size_ratio} of tokenize.max_length: {max_length} gives groups of {size} "
            "tokens, at least 2 are needed. Set a higher ratio, or remove it."
        )
    for module in model.modules():
        setattr(module, GROUP_SIZE_ATTRIBUTE, size)
    return f"groups of {size} tokens during training, shifted by {size // 2} for half of the heads"


def shifted_attention(
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
    """Attend within groups in training mode, fully otherwise; returns [B, T, H, D].

    Raises:
        VerificationError: The architecture uses an unsupported argument, or `enable_shifted_attention` was not called.
    """
    check_arguments(other, "load.s2_group_size_ratio", REMEDY)
    if not module.training or not is_causal_layer(module, is_causal):
        kwargs = {"scaling": scaling, "is_causal": is_causal, "cu_seq_lens_q": cu_seq_lens_q}
        return segment_attention(module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout, **kwargs)
    if bounds.is_square(attention_mask):
        raise VerificationError(
            "load.s2_group_size_ratio splits examples into groups, which the mask of this architecture does not allow "
            f"(a window shorter than the example, a cache, holes). {REMEDY}."
        )
    size = _group_size(module)
    options = {"dropout_p": dropout, "scale": scaling}
    rows = bounds.bounds_per_row(attention_mask, cu_seq_lens_q, query_BHTD.shape[2])
    pieces = [_attend_by_halves(query_BHTD[r], key_BKTD[r], value_BKTD[r], ends, size, options) for r, ends in rows]
    return torch.cat(pieces).transpose(1, 2).contiguous(), None


def group_bounds(ends: list[int], size: int, shift: int) -> list[int]:
    """Add group bounds to the example bounds; the first group of a shifted example is as long as the shift."""
    inner = {start for a, b in pairwise(ends) for start in range(a + (shift or size), b, size)}
    return sorted(inner | set(ends))


def _group_size(module: nn.Module) -> int:
    size = getattr(module, GROUP_SIZE_ATTRIBUTE, None)
    if size is None:
        raise VerificationError(
            "The group size of a layer with `s2` attention is not set. Call enable_shifted_attention on the whole "
            "model, after its last module was added."
        )
    return int(size)


def _attend_by_halves(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: list[int], size: int, options: dict[str, Any]
) -> torch.Tensor:
    """Attend within groups with the first half of the heads, and within shifted groups with the second."""
    num_heads = query.shape[1]
    halves = [(slice(0, num_heads // 2), 0), (slice(num_heads // 2, num_heads), size // 2)]
    return torch.cat(
        [
            bounds.attend_within_bounds(
                query[:, heads],
                _key_heads(key, heads, num_heads),
                _key_heads(value, heads, num_heads),
                group_bounds(ends, size, shift),
                **options,
            )
            for heads, shift in halves
            if heads.start < heads.stop
        ],
        dim=1,
    )


def _key_heads(key_BKTD: torch.Tensor, heads: slice, num_heads: int) -> torch.Tensor:
    """Return the key heads of these query heads, repeated if the slice splits a group of query heads."""
    repeats = num_heads // key_BKTD.shape[1]
    if heads.start % repeats == 0 and heads.stop % repeats == 0:
        return key_BKTD[:, heads.start // repeats : heads.stop // repeats]
    return key_BKTD.repeat_interleave(repeats, dim=1)[:, heads]


AttentionInterface.register("s2", shifted_attention)
AttentionMaskInterface.register("s2", bounds.bounds_mask)
