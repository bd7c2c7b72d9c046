"""Where examples begin and end in rows of tokens, read from the mask that transformers would build.

A mask in which each token sees the past of its own example, and nothing else, is told by its bounds, which take a few
numbers in place of a square. So the mask of a row is probed at a few places for each token: packed rows, padding on
either side, attention in chunks, and windows no shorter than the examples all are of this kind. Any other mask (a
shorter window, holes, a cache) is built as a square, as `sdpa` would, and stays exact.
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
"""Rows of a batch, and the bounds of the examples in them, from 0 to T."""


def bounds_mask(**given: Any) -> torch.Tensor | None:
    """Build the mask: None for plain causal rows, bounds [B, N] on the CPU, else a square [B, 1, T, T].

    Args:
        given: What `transformers.masking_utils` gives to a mask interface.
    """
    bounds = _bounds(**given)
    if bounds is None or _needs_square_mask(bounds, given):
        return sdpa_mask(**given)
    return None if bounds.shape[1] == 2 else bounds


def is_square(mask: torch.Tensor | None) -> bool:
    """Tell a mask with an entry for each pair of tokens from bounds."""
    return mask is not None and mask.dim() > 2


def bounds_per_row(mask: torch.Tensor | None, cu_seq_lens: torch.Tensor | None, num_tokens: int) -> RowBounds:
    """Join the bounds that the mask tells with those passed to the model.

    Args:
        mask: None or bounds, of `bounds_mask`.
        cu_seq_lens: Bounds of the examples of a packed row, where the model was given them.
        num_tokens: T.

    Raises:
        ProofError: They are no bounds of these rows, so the architecture changed the mask on its way.
    """
    passed = [0, num_tokens] if cu_seq_lens is None else cu_seq_lens.tolist()
    told = [passed] if mask is None else mask.tolist()
    if any(row[0] != 0 or row[-1] != num_tokens for row in [passed, *told]):
        raise VerificationError(
            f"An attention layer got bounds {passed} and {told} for rows of {num_tokens} tokens, which are not theirs. "
            "Set load.attention: sdpa."
        )
    if mask is None:
        return [(slice(None), passed)]
    return [(slice(i, i + 1), sorted({*row, *passed})) for i, row in enumerate(told)]


def mask_other_examples(square: torch.Tensor, cu_seq_lens: torch.Tensor | None) -> torch.Tensor:
    """Mask from each other the examples of a packed row, where a square mask of truth values is not told of them."""
    if cu_seq_lens is None or square.dtype != torch.bool or square.shape[-1] != square.shape[-2]:
        return square
    example = torch.bucketize(torch.arange(square.shape[-1], device=square.device), cu_seq_lens, right=True)
    return square & (example[:, None] == example)


def attend_within_bounds(
    query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor, bounds: list[int], **options: Any
) -> torch.Tensor:
    """Attend causally from each token to the past between its bounds; returns [B, H, T, D]."""
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
    """Return the bounds [B, N] if they tell the whole mask, else None."""
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

    def sees(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return mask_function(row, torch.zeros_like(row), q, k) & (real_BT[row, q] == real_BT[row, k])

    first = torch.ones_like(real_BT)
    first[:, 1:] = ~sees(token[:, 1:], token[:, :-1])
    start = torch.where(first, token, 0).cummax(dim=1).values
    wrong = [
        ~sees(token, token),
        ~sees(token, start),
        sees(token, (start - 1).clamp(min=0)) & (start > 0),
        sees(token[:, :-1], token[:, 1:]),
    ]
    return None if any(bool(found.any()) for found in wrong) else _bounds_table(first)


def _needs_square_mask(bounds_BN: torch.Tensor, given: dict[str, Any]) -> bool:
    """Tell whether the architecture computes with the mask itself; packed rows, which have no padding, ask alike."""
    packed = bounds_BN.shape[1] > 2 and given.get("attention_mask") is None
    return not packed and not given.get("allow_is_causal_skip", True)


def _is_contiguous(real_BT: torch.Tensor) -> bool:
    """Tell whether each row's tokens follow each other, padding being before or behind."""
    begins = real_BT[:, 1:] & ~real_BT[:, :-1]
    return bool((begins.sum(dim=1) + real_BT[:, 0] <= 1).all())


def _bounds_table(first_BT: torch.Tensor) -> torch.Tensor:
    num_tokens = first_BT.shape[1]
    rows = [[*row.nonzero()[:, 0].tolist(), num_tokens] for row in first_BT.cpu()]
    longest = max(map(len, rows))
    return torch.tensor([row + [num_tokens] * (longest - len(row)) for row in rows])
