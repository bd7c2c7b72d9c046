"""Tiny models for GGUF: rows are multiples of 256, the block size of llama.cpp's 4-bit types."""

from pathlib import Path
from typing import Any

from tests import architectures, tiny


def build_gguf_model(folder: Path, seed: int = 0, **keys: Any) -> Path:
    """Write a random Llama with the tokenizer of `tiny.build_model`; keyword arguments replace keys of its config.

    The weights are larger than usual, so that the next tokens have clearly different probabilities.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny.build_model(folder)
    torch.manual_seed(seed)
    base: dict[str, Any] = {
        "vocab_size": 360,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**(base | keys))).save_pretrained(folder)
    return folder


VOCABULARY = {"vocab_size": 384, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
"""Rows for the tokens of `tiny.build_model`."""

LLAMA_CPP_KEYS: dict[str, dict[str, Any]] = {
    "cohere2": {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "qwen3_moe": {"norm_topk_prob": True},
}
"""Values of real models that llama.cpp has built in; models with others are refused."""


def build_architecture(name: str, folder: Path) -> Path:
    """Write a tiny model of an architecture with the tokenizer of `tiny.build_model`."""
    tiny.build_model(folder)
    model = architectures.build(name, keys=VOCABULARY | LLAMA_CPP_KEYS.get(name, {}))
    model.save_pretrained(folder)
    return folder
