"""GGUF base models, from the file to a promoted version, checked with the gguf package, numpy and transformers."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import LORA, TEXTS, TRAIN, promoted

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

PARTS = {
    "self_attn.q_proj": ("attn_q", Kind.F16),
    "self_attn.k_proj": ("attn_k", Kind.Q8_0),
    "self_attn.v_proj": ("attn_v", Kind.Q5_1),
    "self_attn.o_proj": ("attn_output", Kind.Q8_0),
    "mlp.gate_proj": ("ffn_gate", Kind.Q4_0),
    "mlp.up_proj": ("ffn_up", Kind.BF16),
    "mlp.down_proj": ("ffn_down", Kind.Q4_1),
    "input_layernorm": ("attn_norm", Kind.F32),
    "post_attention_layernorm": ("ffn_norm", Kind.F32),
}
"""Module of a layer -> its name in GGUF and its data type."""

HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def tensors_of(config):
    """Map each tensor of a Llama from its name in transformers to its name in GGUF and its data type."""
    modules = {"model.embed_tokens": ("token_embd", Kind.Q8_0), "model.norm": ("output_norm", Kind.F32)}
    for layer in range(config.num_hidden_layers):
        for part, (name, kind) in PARTS.items():
            modules[f"model.layers.{layer}.{part}"] = (f"blk.{layer}.{name}", kind)
    return {f"{hf_name}.weight": (f"{gguf_name}.weight", kind) for hf_name, (gguf_name, kind) in modules.items()}


def heads_of(name, config):
    """Return the number of heads of a tensor whose rows llama.cpp reorders for its rotary embedding; else 0."""
    return getattr(config, HEADS.get(name.split(".")[-2], ""), 0)


def to_gguf_order(weight, heads):
    """Interleave the halves of each head, as llama.cpp's converter does."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def to_hf_order(weight, heads):
    """Undo `to_gguf_order`: concatenate the halves of each head."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder, path):
    """Write a model directory as a GGUF file, in the layout of llama.cpp's converter."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, tokenizer)
    for hf_name, (gguf_name, kind) in tensors_of(config).items():
        weight, heads = weights[hf_name].numpy(), heads_of(gguf_name, config)
        stored = gguf.quantize(to_gguf_order(weight, heads) if heads else weight, kind)
        writer.add_tensor(gguf_name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, tokenizer):
    """Write a byte-level tokenizer and its chat template."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = set(tokenizer.added_tokens_encoder)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def dequantize_file(path, config):
    """Return the weights of a GGUF file by their names in transformers, dequantized with the gguf package."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {}
    for hf_name, (gguf_name, _) in tensors_of(config).items():
        weight, heads = (
            gguf.dequantize(stored[gguf_name].data, stored[gguf_name].tensor_type),
            heads_of(gguf_name, config),
        )
        weights[hf_name] = torch.from_numpy(np.array(to_hf_order(weight, heads) if heads else weight, dtype=np.float32))
    assert len(weights) == len(stored)
    return weights


def build_llama(config, weights):
    """Return a Llama with these weights; its head is tied to its embedding."""
    model = LlamaForCausalLM(config).float().eval()
    result = model.load_state_dict(weights, strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    assert not result.unexpected_keys
    return model


def add_adapter(weights, folder):
    """Return the weights plus the products of an adapter's factors, times `lora_alpha / r`."""
    factors, scale = load_file(folder / "adapter_model.safetensors"), LORA["lora_alpha"] / LORA["r"]
    names = [name for name in weights if f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight" in factors]
    assert 2 * len(names) == len(factors)
    adapted = dict(weights)
    for name in names:
        part = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (factors[f"{part}.lora_{side}.weight"].double().numpy() for side in "AB")
        assert np.abs(b @ a).max() > 1e-3, "the adapter is not trained"
        adapted[name] = torch.from_numpy(weights[name].double().numpy() + scale * (b @ a)).float()
    return adapted


def test_a_quantized_gguf_model_is_trained_and_merged_to_the_weights_that_numpy_computes(project, run):
    from zenml.client import Client

    tiny.write_texts(project / "data" / "texts.jsonl", 60)
    path = write_gguf(project / "model", project / "model.gguf")
    outcome = run(
        "pretrain_pipeline",
        **TEXTS,
        model={"type": "gguf", "path": "model.gguf"},
        method=LORA,
        train=TRAIN,
        registry={"model_name": "gguf", "gate": {"metric": "log_likelihood"}},
    )
    folder = promoted(outcome, "gguf")
    merged, tokenizer = reference.load(folder)

    config, original = AutoConfig.from_pretrained(project / "model"), AutoTokenizer.from_pretrained(project / "model")
    adapter = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs["pretrain_checkpoint"][0].uri
    weights = dequantize_file(path, config)
    expected = add_adapter(weights, Path(adapter) / "files")
    for name, weight in merged.state_dict().items():
        if name != "lm_head.weight":
            torch.testing.assert_close(
                weight, expected[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )

    ids = original(tiny.TEXT[:200])["input_ids"]
    assert tokenizer(tiny.TEXT[:200])["input_ids"] == ids
    assert tokenizer.get_vocab() == original.get_vocab()
    base, model = build_llama(config, weights), build_llama(config, expected)
    tensor = torch.tensor([ids])
    torch.testing.assert_close(merged(tensor).logits, model(tensor).logits, rtol=0, atol=1e-4)
    for scores, scorer in ((outcome.report.base, base), (outcome.report.model, model)):
        for score in scores:
            value = reference.text_log_likelihood(scorer, original, score.prompt)
            assert score.metrics["log_likelihood"] == pytest.approx(value, abs=2e-4)


def test_a_gguf_chat_model_keeps_its_template_and_its_stop_token(project, run):
    rows = [{"instruction": f"What is {i}?", "input": "", "output": "The quick brown fox answers."} for i in range(60)]
    tiny.write_jsonl(project / "data" / "fox.jsonl", rows)
    write_gguf(project / "model", project / "chat.gguf")
    outcome = run(
        model={"type": "gguf", "path": "chat.gguf"},
        sources=[{"name": "fox", "path": "data/fox.jsonl", "format": "alpaca"}],
        exams=[],
        method={**LORA, "r": 16, "lora_alpha": 32},
        evaluate={"max_new_tokens": 16},
        train={**TRAIN, "max_steps": 100},
        registry={"model_name": "gguf-chat"},
    )

    model, tokenizer = reference.load(promoted(outcome, "gguf-chat"))
    original = AutoTokenizer.from_pretrained(project / "model")
    messages = [{"role": "user", "content": "What is 7?"}]
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.apply_chat_template(messages, return_dict=True) == original.apply_chat_template(
        messages, return_dict=True
    )
    assert model.generation_config.eos_token_id == original.eos_token_id
    assert reference.generate(model, tokenizer, messages, 16).strip() == rows[0]["output"]
