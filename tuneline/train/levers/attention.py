"""Causal attention of packed examples in blocks of queries, for a CPU; it consists of matrix products.

Each block of queries attends to the keys up to its end, so half of the products are skipped; heads that share a key are
rows of one product, so keys are not repeated. The backward pass uses the stored inputs of the products and the stored
probabilities of short examples; those of long examples are recomputed. In bfloat16, scores, their softmax and all sums
are float32, and the products after the softmax take bfloat16. The CPU kernel of torch (FlashAttention, Dao et al. 2022,
arXiv:2205.14135) computes the same values up to rounding.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from tuneline.model.attention import bounds, segment
from tuneline.train.levers import pointwise

# H heads, K key heads, G heads that share a key, T tokens of a row, D head size
# of a block: N queries, E keys that they attend to

BLOCKED_ATTENTION, SEGMENT_ATTENTION = "blocked", "segment"
BLOCK_SIZE = 96
"""Queries per block: smaller blocks need more calls, larger ones compute more masked scores (docs/log.md)."""

MAX_STORED_LENGTH = 512
"""Length of the longest example whose probabilities are stored: this saves up to a third of the backward pass
(docs/log.md), but the memory grows with the square of the length."""


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_1HTD: torch.Tensor, k_1KTD: torch.Tensor, v_1KTD: torch.Tensor, ends: list[int], scale: float
    ) -> torch.Tensor:
        (num_heads, num_tokens, size), sum_dtype = q_1HTD.shape[1:], pointwise.accumulation_dtype(q_1HTD)
        num_keys = k_1KTD.shape[1]
        q_KGTD = q_1HTD[0].unflatten(0, (num_keys, -1))
        out_1THD = q_1HTD.new_empty(1, num_tokens, num_heads, size)
        out_KGTD = _by_key(out_1THD, num_keys)
        stored: list[torch.Tensor | None] = []
        for a, b in pairwise(ends):
            keys, values = k_1KTD[0, :, a:b].to(sum_dtype) * scale, v_1KTD[0, :, a:b].contiguous()
            for start, end in _blocks(b - a):
                queries = _copy_block(q_KGTD, a + start, a + end, sum_dtype)
                probabilities = _probabilities(queries, keys[:, :end], end - start).to(values.dtype)
                out_KGTD[:, :, a + start : a + end] = torch.bmm(probabilities, values[:, :end]).unflatten(
                    1, (-1, end - start)
                )
                stored.append(probabilities if b - a <= MAX_STORED_LENGTH else None)
        ctx.save_for_backward(q_1HTD, k_1KTD, v_1KTD, out_1THD)
        ctx.stored, ctx.ends, ctx.scale = stored, ends, scale
        return out_1THD

    @staticmethod
    def backward(ctx: Any, gradient_1THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_1HTD, k_1KTD, v_1KTD, out_1THD = ctx.saved_tensors
        num_keys, dtype, sum_dtype = k_1KTD.shape[1], q_1HTD.dtype, pointwise.accumulation_dtype(q_1HTD)
        q_KGTD = q_1HTD[0].unflatten(0, (num_keys, -1))
        grad_out_KGTD = _by_key(gradient_1THD.contiguous(), num_keys)
        mean_KGT1 = _by_key((gradient_1THD.to(sum_dtype) * out_1THD).sum(-1, keepdim=True), num_keys)
        grad_q, grad_k, grad_v = _like(q_1HTD), _like(k_1KTD), _like(v_1KTD)
        grad_q_KGTD, stored = grad_q[0].unflatten(0, (num_keys, -1)), iter(ctx.stored)
        for a, b in pairwise(ctx.ends):
            keys, values = (k_1KTD[0, :, a:b] * ctx.scale).contiguous(), v_1KTD[0, :, a:b].to(sum_dtype)
            grad_keys, grad_values = torch.zeros_like(values), torch.zeros_like(values)
            for start, end in _blocks(b - a):
                where = a + start, a + end
                queries, grad_out = _copy_block(q_KGTD, *where, dtype), _copy_block(grad_out_KGTD, *where, dtype)
                probabilities = next(stored)
                if probabilities is None:
                    scaled_keys = k_1KTD[0, :, a : a + end].to(sum_dtype) * ctx.scale
                    probabilities = _probabilities(queries.to(sum_dtype), scaled_keys, end - start).to(dtype)
                scores = torch.bmm(grad_out.to(sum_dtype), values[:, :end].mT).sub_(
                    _copy_block(mean_KGT1, *where, sum_dtype)
                )
                scores = scores.mul_(probabilities).to(dtype)
                grad_values[:, :end] += torch.bmm(probabilities.mT, grad_out)
                grad_keys[:, :end] += torch.bmm(scores.mT, queries)
                grad_q_KGTD[:, :, a + start : a + end] = torch.bmm(scores, keys[:, :end]).unflatten(
                    1, (-1, end - start)
                )
            grad_k[0, :, a:b] = grad_keys.mul_(ctx.scale)
            grad_v[0, :, a:b] = grad_values
        return grad_q, grad_k, grad_v, None, None


def blocked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each example, in blocks if supported; otherwise with `segment_attention`."""
    active_dropout = dropout if module.training else 0.0
    has_bounds = cu_seq_lens_q is not None and not bounds.is_square(attention_mask)
    plain = has_bounds and not active_dropout and len(query) == 1
    has_extra_options = any(other.get(name) is not None for name in segment.UNSUPPORTED_ARGUMENTS)
    causal = segment.is_causal_layer(module, is_causal) and query.shape[2] == key.shape[2]
    same_type = query.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype != torch.float16
    if not (plain and causal and same_type) or has_extra_options:
        return segment.segment_attention(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, cu_seq_lens_q, **other
        )
    ((_, ends),) = bounds.bounds_per_row(attention_mask, cu_seq_lens_q, query.shape[2])
    with torch.autocast(query.device.type, enabled=False):
        return _BlockedAttention.apply(query, key, value, ends, scaling or query.shape[-1] ** -0.5), None


def unsupported_reason(model: Any, compute_dtype: torch.dtype, *, recomputes_parts: bool = False) -> str:
    """Return why attention cannot be computed in blocks, or an empty text.

    Args:
        model: With its adapter.
        compute_dtype: Dtype of the computation.
        recomputes_parts: Selective gradient checkpointing stores the outputs of torch's attention only.
    """
    base = _base(model)
    implementation = str(getattr(base.config, "_attn_implementation", None))
    if next(base.parameters()).device.type != "cpu":
        return "tensors are on a GPU, which has its own kernel"
    if compute_dtype == torch.float16:
        return "attention is computed in float16, whose range is too small for sums of many terms"
    if recomputes_parts:
        return "load.gradient_checkpointing: selective stores the outputs of torch's attention"
    if implementation != SEGMENT_ATTENTION or not base._can_set_attn_implementation():
        return f"the attention is {implementation}"
    dropout = getattr(base.config.get_text_config(), "attention_dropout", 0.0)
    return f"the model uses attention dropout ({dropout})" if dropout else ""


def enable(model: Any) -> Callable[[], None]:
    """Switch a model to blocked attention; return a function that restores its attention."""
    base = _base(model)
    base.set_attn_implementation(BLOCKED_ATTENTION)
    return lambda: base.set_attn_implementation(SEGMENT_ATTENTION)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_SIZE, length)) for start in range(0, length, BLOCK_SIZE)]


def _by_key(x_1THD: torch.Tensor, num_keys: int) -> torch.Tensor:
    return x_1THD[0].unflatten(1, (num_keys, -1)).permute(1, 2, 0, 3)


def _copy_block(x_KGTD: torch.Tensor, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a block as [K, G * N, D], in one copy."""
    return x_KGTD[:, :, start:end].to(dtype, memory_format=torch.contiguous_format).flatten(1, 2)


def _like(x_1HTD: torch.Tensor) -> torch.Tensor:
    """Return an empty gradient in token-major layout, the layout that the previous layer reads."""
    return x_1HTD.new_empty(x_1HTD.transpose(1, 2).shape).transpose(1, 2)


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, num_queries: int) -> torch.Tensor:
    """Return [K, G * N, E]; the last N keys belong to the queries."""
    scores = torch.bmm(queries, keys.mT)
    scores.unflatten(1, (-1, num_queries))[..., -num_queries:] += _causal_mask(num_queries)
    return torch.softmax(scores, -1)


@cache
def _causal_mask(num_queries: int) -> torch.Tensor:
    """Return the mask [N, N] that hides later keys from each query."""
    return torch.full((num_queries, num_queries), float("-inf")).triu(1)


AttentionInterface.register(BLOCKED_ATTENTION, blocked_attention)
AttentionMaskInterface.register(BLOCKED_ATTENTION, bounds.bounds_mask)
