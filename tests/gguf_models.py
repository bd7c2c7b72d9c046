"""Tiny models for GGUF: rows are multiples of 256, the block size of llama.cpp's 4-bit types."""

from pathlib import Path
from typing import Any

from tests import tiny


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
