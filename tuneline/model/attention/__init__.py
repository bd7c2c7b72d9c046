"""Attention: which kind a model computes, ours for packed and for long rows, and the proof that packing is exact."""

from tuneline.model.attention import shifted as _registers_s2  # noqa: F401
from tuneline.model.attention.isolation import check_isolation, packed_inputs, set_isolating_attention
from tuneline.model.attention.segment import segment_attention

__all__ = ["check_isolation", "first_isolated", "packed_inputs", "segment_attention"]
