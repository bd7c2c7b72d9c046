"""Attention: choice of the implementation, attention for packed and long rows, and the check of packing isolation."""

from tuneline.model.attention import shifted as _registers_s2  # noqa: F401
from tuneline.model.attention.isolation import check_isolation, packed_inputs, set_isolating_attention
from tuneline.model.attention.segment import segment_attention

__all__ = ["check_isolation", "packed_inputs", "segment_attention", "set_isolating_attention"]
