"""Example bounds of token rows, derived from the attention mask that transformers would build.

A mask in which each token attends to the past of its own example only is determined by the bounds of the examples: a
few numbers instead of a square. Each token's mask is probed at a few positions: packed rows, padding on either side,
chunked attention, and windows no shorter than the examples have this form. Any other mask (a shorter window, holes, a
cache) is built as a square, as for `sdpa`, and stays exact.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import sdpa_mask

from tuneline.errors import VerificationError

# B batch, H heads, K key heads, T tokens of a row, D head size, N bounds of a row

RowBounds = list[tuple[slice, list[int]]]
"""Rows of a batch with the bounds of their examples, from 0 to T."""


def bounds_mask(**kwargs: Any) -> torch.Tensor | None:
    """Build the mask: None for plain causal rows, bounds [B, N] on the CPU, else a square [B, 1, T, T].

    Args:
        kwargs: Arguments of a mask function in `transformers.masking_utils`.
    """
    bounds = _bounds(**kwargs)
    if bounds is None or _needs_square_mask(bounds, kwargs):
        return sdpa_mask(**kwargs)
    return None if bounds.shape[1] == 2 else bounds


def is_square(mask: torch.Tensor | None) -> bool:
    """Return whether a mask has one entry per pair of tokens, in contrast to bounds."""
    return mask is not None and mask.dim() > 2


def bounds_per_row(mask: torch.Tensor | None, cu_seq_lens: torch.Tensor | None, num_tokens: int) -> RowBounds:
    """Combine the bounds of the mask with those passed to the model.

    Args:
        mask: None or bounds, result of `bounds_mask`.
        cu_seq_lens: Bounds of the examples of a packed row, if the model received them.
        num_tokens: T.

    Raises:
        VerificationError: The bounds do not match the rows: the architecture changed the mask.
    """
    model_bounds = [0, num_tokens] if cu_seq_lens is None else cu_seq_lens.tolist()
    mask_bounds = [model_bounds] if mask is None else mask.tolist()
    if any(row[0] != 0 or row[-1] != num_tokens for row in [model_bounds, *mask_bounds]):
        raise VerificationError(
            f"An attention layer received the bounds {model_bounds} and {mask_bounds}, which do not match rows of "
            f"{num_tokens} tokens. Set load.attention: sdpa."
        )
    if mask is None:
        return [(slice(None), model_bounds)]
    return [(slice(i, i + 1), sorted({*row, *model_bounds})) for i, row in enumerate(mask_bounds)]


def mask_other_examples(square: torch.Tensor, cu_seq_lens: torch.Tensor | None) -> torch.Tensor:
    """Restrict a square boolean mask to pairs of tokens in the same example of a packed row."""
    if cu_seq_lens is None or square.dtype != torch.bool or square.shape[-1] != square.shape[-2]:
        return square
    example = torch.bucketize(torch.arange(square.shape[-1], device=square.device), cu_seq_lens, right=True)
    return square & (example[:, None] == example)


def attend_within_bounds(
    query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor, bounds: list[int], **options: Any
) -> torch.Tensor:
    """Compute causal attention within each pair of bounds; returns [B, H, T, D]."""
    gqa = query_BHTD.shape[1] != key_BKTD.shape[1]
    pieces = [
        scaled_dot_product_attention(
            query_BHTD[:, :, a:b],
            key_BKTD[:, :, a:b],
            value_BKTD[:, :, a:b],
            is_causal=True,
            enable_gqa=gqa,
            **options,
        )
        for a, b in pairwise(bounds)
        if a < b
    ]
    return torch.cat(pieces, dim=2)


def _bounds(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **other: Any,
) -> torch.Tensor | None:
    """Return the bounds [B, N] if they determine the mask, else None."""
    offsets = (other.get("q_offset", 0), other.get("kv_offset", 0))
    if q_length != kv_length or offsets != (0, 0) or other.get("use_vmap", False):
        return None
    real_BT = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
    if attention_mask is not None:
        real_BT = attention_mask.to(device=device, dtype=torch.bool)
    if real_BT.shape[1] != q_length or not _is_contiguous(real_BT):
        return None
    row = torch.arange(batch_size, device=device)[:, None]
    token = torch.arange(q_length, device=device).expand(batch_size, -1)

    def attends(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return mask_function(row, torch.zeros_like(row), q, k) & (real_BT[row, q] == real_BT[row, k])

    first = torch.ones_like(real_BT)
    first[:, 1:] = ~attends(token[:, 1:], token[:, :-1])
    start = torch.where(first, token, 0).cummax(dim=1).values
    violations = [
        ~attends(token, token),
        ~attends(token, start),
        attends(token, (start - 1).clamp(min=0)) & (start > 0),
        attends(token[:, :-1], token[:, 1:]),
    ]
    return None if any(bool(violation.any()) for violation in violations) else _bounds_table(first)


def _needs_square_mask(bounds_BN: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether the architecture computes with the mask itself; packed rows set the same flag."""
    packed = bounds_BN.shape[1] > 2 and kwargs.get("attention_mask") is None
    return not packed and not kwargs.get("allow_is_causal_skip", True)


def _is_contiguous(real_BT: torch.Tensor) -> bool:
    """Return whether the tokens of each row are contiguous, with padding only before or after them."""
    starts = real_BT[:, 1:] & ~real_BT[:, :-1]
    return bool((starts.sum(dim=1) + real_BT[:, 0] <= 1).all())


def _bounds_table(first_BT: torch.Tensor) -> torch.Tensor:
    num_tokens = first_BT.shape[1]
    rows = [[*row.nonzero()[:, 0].tolist(), num_tokens] for row in first_BT.cpu()]
    longest = max(map(len, rows))
    return torch.tensor([row + [num_tokens] * (longest - len(row)) for row in rows])
