"""Shifted sparse attention for training on long rows (S2-Attn of LongLoRA, Chen et al. 2023, arXiv:2309.12307).

Each example is cut into groups. Half of the heads attend within the groups, the other half within groups shifted by
half a group, so that what is known travels on from layer to layer. The first shifted group is half as long: the paper's
code joins it with the end of the row, which would show it the future. So each half of the heads is attention by bounds,
and nothing is masked. Only training is sparse; a model in `eval` attends in full.

The size of the groups comes from `tokenize.max_length`, not from the rows: an example is treated the same alone, padded
or packed with others.
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

REMEDY = "Leave load.s2_group_size_ratio out"
GROUP_SIZE_ATTRIBUTE = "s2_group_size"
"""Attribute of each module of a model, so that models in one process can differ and the saved config tells nothing."""


def enable_shifted_attention(model: nn.Module, group_size_ratio: float, max_length: int) -> str:
    """Let a model train with shifted sparse attention; its implementation must be `s2`.

    Args:
        model: Its attention layers go through transformers' `AttentionInterface`.
        group_size_ratio: Length of a group, as a share of the longest example.
        max_length: Tokens of the longest example, `tokenize.max_length`.

    Returns:
        The decision in words.

    Raises:
        RecipeError: A group would be too short to be shifted.
    """
    size = int(group_size_ratio * max_length)
    if size < 2:
        raise RecipeError(
            f"load.s2_group_size_ratio: {group_size_ratio} of tokenize.max_length: {max_length} is a group of {size} "
            "tokens, and it takes 2 to shift one. Set a higher ratio, or leave it out."
        )
    for module in model.modules():
        setattr(module, GROUP_SIZE_ATTRIBUTE, size)
    return f"groups of {size} tokens while training, those of half of the heads shifted by {size // 2}"


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
    """Attend within groups while training, in full otherwise; returns [B, T, H, D].

    Raises:
        ProofError: The architecture asks for more than this computes, or `enable` was not called.
    """
    check_arguments(other, "load.s2_group_size_ratio", REMEDY)
    if not module.training or not is_causal_layer(module, is_causal):
        passed = {"scaling": scaling, "is_causal": is_causal, "cu_seq_lens_q": cu_seq_lens_q}
        return segment_attention(module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout, **passed)
    if bounds.is_square(attention_mask):
        raise VerificationError(
            "load.s2_group_size_ratio cuts examples into groups, and this architecture has a mask of its own (a window "
            f"shorter than the example, a cache, holes). {REMEDY}."
        )
    size = _group_size(module)
    options = {"dropout_p": dropout, "scale": scaling}
    rows = bounds.bounds_per_row(attention_mask, cu_seq_lens_q, query_BHTD.shape[2])
    pieces = [_attend_by_halves(query_BHTD[r], key_BKTD[r], value_BKTD[r], ends, size, options) for r, ends in rows]
    return torch.cat(pieces).transpose(1, 2).contiguous(), None


def group_bounds(ends: list[int], size: int, shift: int) -> list[int]:
    """Add the bounds of the groups to those of the examples; a shifted first group is as long as the shift."""
    inner = {start for a, b in pairwise(ends) for start in range(a + (shift or size), b, size)}
    return sorted(inner | set(ends))


def _group_size(module: nn.Module) -> int:
    size = getattr(module, GROUP_SIZE_ATTRIBUTE, None)
    if size is None:
        raise VerificationError(
            "A layer attends with `s2`, and its group size is not set. Call shifted.enable on the whole model, after "
            "its last module was added."
        )
    return int(size)


def _attend_by_halves(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: list[int], size: int, options: dict[str, Any]
) -> torch.Tensor:
    """Attend with the first half of the heads in groups, with the second in shifted groups."""
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
    """Return the key heads that these query heads read, repeated where the border cuts through their group."""
    repeats = num_heads // key_BKTD.shape[1]
    if heads.start % repeats == 0 and heads.stop % repeats == 0:
        return key_BKTD[:, heads.start // repeats : heads.stop // repeats]
    return key_BKTD.repeat_interleave(repeats, dim=1)[:, heads]


AttentionInterface.register("s2", shifted_attention)
AttentionMaskInterface.register("s2", bounds.bounds_mask)
