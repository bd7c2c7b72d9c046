"""Architectures that can be exported to GGUF: metadata keys and changes of weights that llama.cpp expects.

The names of tensors come from the `gguf` package. An entry here is only a proposal: every export is verified by
comparing llama.cpp's log-probabilities with those of transformers (`proof`), and `docs/serving.md` lists which
architectures pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

from tuneline.errors import SourceError
from tuneline.export.gguf import weights as changes
from tuneline.registry import Registry

Writer = gguf.GGUFWriter


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp represents an architecture."""

    arch: gguf.MODEL_ARCH
    add_metadata: Callable[[Writer, Any], None]
    transform: changes.Transform = changes.keep
    window: bool = False
    """Whether llama.cpp supports the sliding window of the architecture; if not, the context ends with the window."""

    layered_rope: bool = False
    """Whether full and sliding layers may have different rotary embeddings."""


architectures: Registry[Architecture] = Registry("GGUF architecture")
"""Entries by `model_type` of the config."""


def find_architecture(config: Any) -> Architecture:
    """Return the entry of a model config.

    Raises:
        SourceError: There is none.
    """
    name = str(config.model_type)
    if name not in architectures:
        raise SourceError(
            f"gguf: the architecture {name!r} cannot be exported to GGUF. Supported: {', '.join(architectures)}. Set "
            "gguf: none to export safetensors only."
        )
    return architectures[name]


def add_common(writer: Writer, config: Any) -> None:
    """Add the keys that all architectures have."""
    hidden, heads = _first(config, "hidden_size", "n_embd"), _first(config, "num_attention_heads", "n_head")
    writer.add_embedding_length(hidden)
    writer.add_block_count(block_count(config))
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_feed_forward_length(_first(config, "intermediate_size", "n_inner") or 4 * hidden)
    writer.add_vocab_size(config.vocab_size)


def block_count(config: Any) -> int:
    """Return the number of layers."""
    return int(_first(config, "num_hidden_layers", "n_layer"))


def head_size(config: Any) -> int:
    """Return the size of an attention head."""
    size = getattr(config, "head_dim", None)
    return int(size or _first(config, "hidden_size", "n_embd") // _first(config, "num_attention_heads", "n_head"))


def add_rms(writer: Writer, config: Any) -> None:
    """Add the keys of architectures like Llama: root mean square norm and rotary embedding."""
    add_common(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))


def add_layer_norm(writer: Writer, config: Any) -> None:
    """Add the keys of architectures with layer norm and a rotary embedding of a part of each head."""
    add_common(writer, config)
    writer.add_layer_norm_eps(_first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"))
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor") or 1.0
    writer.add_rope_dimension_count(int(share * head_size(config)))


def _first(config: Any, *names: str) -> Any:
    """Return the first of several config keys that is set."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _gemma2(writer: Writer, config: Any) -> None:
    add_rms(writer, config)
    writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: Writer, config: Any) -> None:
    add_rms(writer, config)
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _phi3(writer: Writer, config: Any) -> None:
    add_rms(writer, config)
    share = (config.rope_parameters or {}).get("partial_rotary_factor") or 1.0
    writer.add_rope_dimension_count(int(share * head_size(config)))
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings or config.max_position_embeddings)


def _gpt2(writer: Writer, config: Any) -> None:
    add_common(writer, config)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt_neox(writer: Writer, config: Any) -> None:
    add_layer_norm(writer, config)
    writer.add_parallel_residual(config.use_parallel_residual)


def _granite(writer: Writer, config: Any) -> None:
    add_rms(writer, config)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _olmo(writer: Writer, config: Any) -> None:
    add_common(writer, config)
    writer.add_layer_norm_eps(1e-5)
    if config.clip_qkv:
        writer.add_clamp_kqv(config.clip_qkv)


def _cohere(writer: Writer, config: Any) -> None:
    add_layer_norm(writer, config)
    writer.add_logit_scale(config.logit_scale)


def _mixture(writer: Writer, config: Any) -> None:
    add_rms(writer, config)
    writer.add_expert_count(_first(config, "num_local_experts", "num_experts"))
    writer.add_expert_used_count(config.num_experts_per_tok)
    if size := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(size)


def _bloom(writer: Writer, config: Any) -> None:
    add_common(writer, config)
    writer.add_context_length(2048)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


ARCH = gguf.MODEL_ARCH
for _name, _entry in {
    "cohere": Architecture(ARCH.COMMAND_R, _cohere),
    "gemma": Architecture(ARCH.GEMMA, add_rms, changes.add_one_to_norms),
    "gemma2": Architecture(ARCH.GEMMA2, _gemma2, changes.add_one_to_norms, window=True),
    "gemma3_text": Architecture(ARCH.GEMMA3, _gemma3, changes.add_one_to_norms, window=True, layered_rope=True),
    "gpt2": Architecture(ARCH.GPT2, _gpt2, changes.transpose_convolutions),
    "gpt_neox": Architecture(ARCH.GPTNEOX, _gpt_neox, changes.separate_fused_heads),
    "granite": Architecture(ARCH.GRANITE, _granite, changes.permute_heads),
    "llama": Architecture(ARCH.LLAMA, add_rms, changes.permute_heads),
    "mistral": Architecture(ARCH.LLAMA, add_rms, changes.permute_heads),
    "mixtral": Architecture(ARCH.LLAMA, _mixture, changes.permute_heads),
    "olmo": Architecture(ARCH.OLMO, _olmo, changes.permute_heads),
    "olmo2": Architecture(ARCH.OLMO2, add_rms),
    "phi": Architecture(ARCH.PHI2, add_layer_norm),
    "phi3": Architecture(ARCH.PHI3, _phi3, window=True),
    "qwen2": Architecture(ARCH.QWEN2, add_rms),
    "qwen3": Architecture(ARCH.QWEN3, add_rms),
    "qwen3_moe": Architecture(ARCH.QWEN3MOE, _mixture),
    "smollm3": Architecture(ARCH.SMOLLM3, add_rms, changes.permute_heads),
    "stablelm": Architecture(ARCH.STABLELM, add_layer_norm),
    "starcoder2": Architecture(ARCH.STARCODER2, add_layer_norm),
}.items():
    architectures.register(_name)(_entry)
