"""Attention for packed rows: each example by itself, as if it stood alone.

`segment` runs one causal attention an example, instead of one over the whole row with a dense block mask, of which
most would be masked (Kundu et al. 2024, arXiv:2407.09105). It reads transformers' own `cu_seq_lens_q`. It does not do
padding masks, sliding windows, softcap or sinks: such a model is refused, and `train.attention: sdpa` is the way.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tuneline.errors import ProofError

# B batch (1), H heads, K key heads, T tokens of the row, D head size


def segment_attention(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each example; returns [B, T, H, D]."""
    unknown = [name for name in ("sliding_window", "softcap", "s_aux") if other.get(name) is not None]
    if attention_mask is not None or unknown:
        raise ProofError(f"train.attention segment does not do {unknown or 'masks'}. Set train.attention: sdpa.")
    bounds = [0, query_BHTD.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    pieces = [
        scaled_dot_product_attention(
            query_BHTD[:, :, a:b],
            key_BKTD[:, :, a:b],
            value_BKTD[:, :, a:b],
            is_causal=True,
            dropout_p=dropout if module.training else 0.0,
            scale=scaling,
            enable_gqa=query_BHTD.shape[1] != key_BKTD.shape[1],
        )
        for a, b in pairwise(bounds)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register("segment", segment_attention)
AttentionMaskInterface.register("segment", _no_mask)


def packed_inputs(lengths: list[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what tells a model where the examples of a row begin: positions that restart, and the bounds."""
    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    longest = max(lengths)
    return {
        "position_ids": positions,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


@torch.no_grad()
def check_isolation(
    model: PreTrainedModel, batches: Sequence[Sequence[list[int]]] = (), tolerance: float = 1e-2
) -> float:
    """Compare examples packed together with each alone.

    Args:
        model: The model to be trained.
        batches: For each comparison, the ids of examples that share a row; without any, made-up ones are taken.
        tolerance: Difference up to which it is rounding.

    Returns:
        Largest difference of the logits, relative to their spread.

    Raises:
        ProofError: The difference is above the tolerance, so packed examples would see each other.
    """
    training = model.training
    model.eval()
    difference = max(_difference(model, batch) for batch in batches or [_made_up(model)])
    model.train(training)
    if not difference <= tolerance:
        raise ProofError(
            f"Packed examples see each other in this architecture (relative difference {difference:.1e}, at most "
            f"{tolerance:.0e} is rounding). Set tokenize.packing: false and train.per_device_train_batch_size: 1."
        )
    return difference


def _difference(model: PreTrainedModel, batch: Sequence[list[int]]) -> float:
    parts = [torch.tensor([ids], device=model.device) for ids in batch]
    alone = torch.cat([model(input_ids=part, use_cache=False).logits[0].float() for part in parts])
    inputs = packed_inputs([part.shape[1] for part in parts], model.device)
    packed = model(input_ids=torch.cat(parts, dim=1), **inputs).logits[0].float()
    return float((alone - packed).abs().max() / alone.std())


def _made_up(model: PreTrainedModel) -> list[list[int]]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [(i * 7919 + 11) % vocabulary for i in range(16)]
    return [ids[:7], ids[7:]]
