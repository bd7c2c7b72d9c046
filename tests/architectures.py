"""Tiny random instances of every decoder-only causal language model in `transformers`.

Each architecture gets the keys of one generic config that its class has, and the extra keys in `EXTRA`. Layer types
come from the defaults of the class: one layer of each type and at least two, so that a hybrid has all its layer types.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

GENERIC: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "intermediate_size": 128,
    "n_inner": 128,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "sliding_window": 8,
    "initializer_range": 0.125,
    "init_std": 0.125,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 256,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "first_k_dense_replace": 1,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    # state spaces
    "state_size": 16,
    "mamba_d_state": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
    "chunk_size": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
SLIDING_LATENT = {
    "shared_experts_intermediate_size": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 32,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {"image_size": 28, "patch_size": 14}

EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
    },
    "dbrx": {
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    },
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots3_note": {
        "text_config": SLIDING_LATENT,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64, "mlp_layer_types": ["dense"] * 2},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": SLIDING_LATENT,
    "falcon_h1": {"mamba_d_ssm": 128},
    "flint": {"mlp_only_layers": [0]},
    "fuyu": {"text_config": {"model_type": "persimmon"}},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", **VISION}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4": {"vision_config": {"position_embedding_size": 16}, "text_config": {"global_head_dim": 32}},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified": {
        "text_config": {"global_head_dim": 32},
        "vision_config": {"mm_embed_dim": 64, "mm_posemb_size": 16, "output_proj_dims": 64},
    },
    "gemma4_unified_text": {"global_head_dim": 32},
    "got_ocr2": {"text_config": {"model_type": "qwen2"}, "vision_config": {"image_size": 64, "mlp_dim": 64}},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 32},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "moshi": {"audio_vocab_size": 256},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3"}},
    "phi4_multimodal": {
        "audio_config": {
            "num_blocks": 2,
            "nemo_conv_channels": 32,
            "ext_pw_out_channel": 64,
            "depthwise_separable_out_channel": 64,
        },
        "vision_config": VISION,
    },
    "qwen4_exp": {"text_config": INDEXED},
    "qwen4_exp_text": INDEXED,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "axial_pos_embds": False,
        "num_buckets": 4,
    },
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Extra config keys of architectures; nested for nested configs."""

ENCODER = "an encoder"
HALF = "the decoder half of an encoder-decoder"
AUDIO = "predicts audio codes, not text"
DRAFT = "a draft head that reads another model's states"

EXCLUDED: dict[str, str] = {
    "bart": HALF,
    "bert": ENCODER,
    "bert-generation": ENCODER,
    "big_bird": ENCODER,
    "bigbird_pegasus": HALF,
    "blenderbot": HALF,
    "blenderbot-small": HALF,
    "camembert": ENCODER,
    "data2vec-text": ENCODER,
    "electra": ENCODER,
    "ernie": ENCODER,
    "gemma4_assistant": DRAFT,
    "gemma4_unified_assistant": DRAFT,
    "marian": HALF,
    "mbart": HALF,
    "megatron-bert": ENCODER,
    "musicgen": AUDIO,
    "musicgen_melody": AUDIO,
    "mvp": HALF,
    "pegasus": HALF,
    "plbart": HALF,
    "prophetnet": HALF,
    "rembert": ENCODER,
    "roberta": ENCODER,
    "roberta-prelayernorm": ENCODER,
    "roc_bert": ENCODER,
    "roformer": ENCODER,
    "trocr": HALF,
    "whisper": HALF,
    "xlm": ENCODER,
    "xlm-roberta": ENCODER,
    "xlm-roberta-xl": ENCODER,
    "xlnet": ENCODER,
    "xmod": ENCODER,
}
"""Architectures of the mapping that are not decoder-only text models, with the reason."""

NAMES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in EXCLUDED]
WITHOUT_GENERATION = {
    "blt": "its config has no number of layers",
    "gemma3n": "needs timm",
    "xlstm": "its cache is broken",
}
GENERATING = [name for name in NAMES if name not in WITHOUT_GENERATION]
MAX_PARAMETERS = 5_000_000


def build(name: str, seed: int = 0, keys: dict[str, Any] | None = None) -> PreTrainedModel:
    """Build a random model of an architecture, after checking its size on the meta device.

    Args:
        name: Architecture.
        seed: Seed of the weights.
        keys: Config keys that replace those of the tiny config.
    """
    config = tiny_config(name, keys)
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{name} would have {count / 1e6:.0f}e6 parameters; add keys to EXTRA.")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.1)  # weights of zero would hide errors in earlier layers
    return model


def tiny_config(name: str, keys: dict[str, Any] | None = None) -> Any:
    """Return the tiny config of an architecture, with some keys replaced."""
    config_class = CONFIG_MAPPING[name]
    return config_class(**(_keys(config_class, EXTRA.get(name, {})) | (keys or {})))


def _keys(config_class: type, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the generic keys that a class has, those of its nested configs, and the extra keys."""
    fields = config_class.__dataclass_fields__
    keys = {key: value for key, value in GENERIC.items() if key in fields}
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        keys["num_key_value_heads"] = keys["num_attention_heads"]  # latent attention has no groups
    for key, nested in config_class.sub_configs.items():
        inner = extra.get(key, {})
        if "model_type" in inner:
            nested = CONFIG_MAPPING[inner["model_type"]]
        if nested.__name__ != "AutoConfig":
            keys[key] = _keys(nested, inner)
    nested_keys = config_class.sub_configs
    return keys | _layers(config_class) | {key: value for key, value in extra.items() if key not in nested_keys}


def _layers(config_class: type) -> dict[str, Any]:
    """Return one layer of each type in the defaults, and at least two layers."""
    default = config_class()
    layer_types: dict[str, list[str]] = {}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if key in config_class.__dataclass_fields__ and getattr(default, key, None):
            layer_types[key] = list(dict.fromkeys(getattr(default, key)))
    count = max([2, *map(len, layer_types.values())])
    layers = {key: (types * count)[:count] for key, types in layer_types.items()}
    return layers | {"num_hidden_layers": count} if layers else {}
