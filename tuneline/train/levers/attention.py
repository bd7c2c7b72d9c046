"""Causal attention of packed examples in blocks of queries, for a CPU: products of matrices and nothing else.

Each block of queries meets the keys up to its own end, so half of the work is never begun; heads that share a key are
rows of one product, so keys are never repeated. What is kept for the backward pass is what the products took in, and
the probabilities of short examples; those of long ones are made again. In bfloat16, scores, their softmax and all sums
are float32, and the products behind the softmax take bfloat16. Torch's own kernel for a CPU (FlashAttention, Dao et al.
2022, arXiv:2205.14135) computes the same numbers, to rounding.
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
# of a block: N queries, E keys that it sees

BLOCKED_ATTENTION, SEGMENT_ATTENTION = "blocked", "segment"
BLOCK_SIZE = 96
"""Queries of a block: fewer cost calls, more are computed only to be masked (docs/log.md)."""

MAX_STORED_LENGTH = 512
"""Longest example whose probabilities are kept: it saves up to a third of the backward pass (docs/log.md), and memory
grows with the square."""


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_1HTD: torch.Tensor, k_1KTD: torch.Tensor, v_1KTD: torch.Tensor, ends: list[int], scale: float
    ) -> torch.Tensor:
        (num_heads, num_tokens, size), whole = q_1HTD.shape[1:], pointwise.accumulation_dtype(q_1HTD)
        num_keys = k_1KTD.shape[1]
        q_KGTD = q_1HTD[0].unflatten(0, (num_keys, -1))
        out_1THD = q_1HTD.new_empty(1, num_tokens, num_heads, size)
        out_KGTD = _by_key(out_1THD, num_keys)
        kept: list[torch.Tensor | None] = []
        for a, b in pairwise(ends):
            keys, values = k_1KTD[0, :, a:b].to(whole) * scale, v_1KTD[0, :, a:b].contiguous()
            for start, end in _blocks(b - a):
                queries = _rows(q_KGTD, a + start, a + end, whole)
                seen = _probabilities(queries, keys[:, :end], end - start).to(values.dtype)
                out_KGTD[:, :, a + start : a + end] = torch.bmm(seen, values[:, :end]).unflatten(1, (-1, end - start))
                kept.append(seen if b - a <= MAX_STORED_LENGTH else None)
        ctx.save_for_backward(q_1HTD, k_1KTD, v_1KTD, out_1THD)
        ctx.kept, ctx.ends, ctx.scale = kept, ends, scale
        return out_1THD

    @staticmethod
    def backward(ctx: Any, gradient_1THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_1HTD, k_1KTD, v_1KTD, out_1THD = ctx.saved_tensors
        num_keys, kind, whole = k_1KTD.shape[1], q_1HTD.dtype, pointwise.accumulation_dtype(q_1HTD)
        q_KGTD = q_1HTD[0].unflatten(0, (num_keys, -1))
        given_KGTD = _by_key(gradient_1THD.contiguous(), num_keys)
        mean_KGT1 = _by_key((gradient_1THD.to(whole) * out_1THD).sum(-1, keepdim=True), num_keys)
        of_q, of_k, of_v = _like(q_1HTD), _like(k_1KTD), _like(v_1KTD)
        of_q_KGTD, kept = of_q[0].unflatten(0, (num_keys, -1)), iter(ctx.kept)
        for a, b in pairwise(ctx.ends):
            keys, values = (k_1KTD[0, :, a:b] * ctx.scale).contiguous(), v_1KTD[0, :, a:b].to(whole)
            of_keys, of_values = torch.zeros_like(values), torch.zeros_like(values)
            for start, end in _blocks(b - a):
                where = a + start, a + end
                queries, given = _rows(q_KGTD, *where, kind), _rows(given_KGTD, *where, kind)
                seen = next(kept)
                if seen is None:
                    seen_keys = k_1KTD[0, :, a : a + end].to(whole) * ctx.scale
                    seen = _probabilities(queries.to(whole), seen_keys, end - start).to(kind)
                scores = torch.bmm(given.to(whole), values[:, :end].mT).sub_(_rows(mean_KGT1, *where, whole))
                scores = scores.mul_(seen).to(kind)
                of_values[:, :end] += torch.bmm(seen.mT, given)
                of_keys[:, :end] += torch.bmm(scores.mT, queries)
                of_q_KGTD[:, :, a + start : a + end] = torch.bmm(scores, keys[:, :end]).unflatten(1, (-1, end - start))
            of_k[0, :, a:b] = of_keys.mul_(ctx.scale)
            of_v[0, :, a:b] = of_values
        return of_q, of_k, of_v, None, None


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
    """Attend within each example, in blocks where that can be; else as `segment` does."""
    dropped = dropout if module.training else 0.0
    told = cu_seq_lens_q is not None and not bounds.is_square(attention_mask)
    plain = told and not dropped and len(query) == 1
    asks_more = any(other.get(name) is not None for name in segment.UNSUPPORTED_ARGUMENTS)
    causal = segment.is_causal_layer(module, is_causal) and query.shape[2] == key.shape[2]
    alike = query.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype != torch.float16
    if not (plain and causal and alike) or asks_more:
        return segment.segment_attention(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, cu_seq_lens_q, **other
        )
    ((_, ends),) = bounds.bounds_per_row(attention_mask, cu_seq_lens_q, query.shape[2])
    with torch.autocast(query.device.type, enabled=False):
        return _BlockedAttention.apply(query, key, value, ends, scaling or query.shape[-1] ** -0.5), None


def unsupported_reason(model: Any, computed: torch.dtype, *, recomputes_parts: bool = False) -> str:
    """Return what keeps attention from being computed in blocks, or an empty text.

    Args:
        model: With its adapter.
        computed: Type of the computation.
        recomputes_parts: Results of attention are kept and the rest is recomputed; those of blocks are not known there.
    """
    base = _base(model)
    kind = str(getattr(base.config, "_attn_implementation", None))
    if next(base.parameters()).device.type != "cpu":
        return "tensors live on a GPU, which has a kernel for it"
    if computed == torch.float16:
        return "attention is computed in float16, which holds no sums of many terms"
    if recomputes_parts:
        return "load.gradient_checkpointing: selective keeps the results of torch's own attention"
    if kind != SEGMENT_ATTENTION or not base._can_set_attn_implementation():
        return f"the attention is {kind}"
    dropout = getattr(base.config.get_text_config(), "attention_dropout", 0.0)
    return f"attention drops out ({dropout})" if dropout else ""


def enable(model: Any) -> Callable[[], None]:
    """Let a model attend in blocks; returns what undoes it."""
    base = _base(model)
    base.set_attn_implementation(BLOCKED_ATTENTION)
    return lambda: base.set_attn_implementation(SEGMENT_ATTENTION)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_SIZE, length)) for start in range(0, length, BLOCK_SIZE)]


def _by_key(x_1THD: torch.Tensor, num_keys: int) -> torch.Tensor:
    return x_1THD[0].unflatten(1, (num_keys, -1)).permute(1, 2, 0, 3)


def _rows(x_KGTD: torch.Tensor, start: int, end: int, kind: torch.dtype) -> torch.Tensor:
    """Return a block as [K, G * N, D], in one copy."""
    return x_KGTD[:, :, start:end].to(kind, memory_format=torch.contiguous_format).flatten(1, 2)


def _like(x_1HTD: torch.Tensor) -> torch.Tensor:
    """Return room for a gradient, laid out token by token, as the layer before will read it."""
    return x_1HTD.new_empty(x_1HTD.transpose(1, 2).shape).transpose(1, 2)


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, num_queries: int) -> torch.Tensor:
    """Return [K, G * N, E]; the last N keys are those of the queries themselves."""
    scores = torch.bmm(queries, keys.mT)
    scores.unflatten(1, (-1, num_queries))[..., -num_queries:] += _later(num_queries)
    return torch.softmax(scores, -1)


@cache
def _later(num_queries: int) -> torch.Tensor:
    """Return what hides from each query [N, N] the keys behind it."""
    return torch.full((num_queries, num_queries), float("-inf")).triu(1)


AttentionInterface.register(BLOCKED_ATTENTION, blocked_attention)
AttentionMaskInterface.register(BLOCKED_ATTENTION, bounds.bounds_mask)
