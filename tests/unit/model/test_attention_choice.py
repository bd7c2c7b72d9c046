"""Choice of the attention implementation by machine and architecture, with reasons."""

import pytest
import torch
from transformers import (
    AutoConfig,
    FalconConfig,
    Gemma2Config,
    GPTJConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    ViTConfig,
)

from tests import architectures
from tuneline.errors import RecipeError
from tuneline.model.attention import implementation

LLAMA = LlamaConfig()
GEMMA = Gemma2Config()


def simulate_machine(monkeypatch, *, gpu=None, packages=()):
    """Simulate a machine; `gpu` is a compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    for kind, (package, _, capability) in implementation.FLASH_REQUIREMENTS.items():
        monkeypatch.setitem(
            implementation.FLASH_REQUIREMENTS, kind, (package, lambda p=package: p in packages, capability)
        )


def choose_attention(requested="auto", config=LLAMA, dtype=torch.bfloat16, packed=True, s2=False):
    return implementation.choose_attention(requested, config=config, dtype=dtype, packed=packed, s2=s2)


def test_auto_selects_flash_attention_if_it_is_supported(monkeypatch):
    simulate_machine(monkeypatch, gpu=(8, 0), packages=["flash-attn"])

    assert choose_attention() == ("flash_attention_2", "the fastest on this machine")


@pytest.mark.parametrize(
    ("machine", "dtype", "missing"),
    [
        ({}, torch.bfloat16, "needs a CUDA device and the package flash-attn"),
        ({"gpu": (8, 0)}, torch.bfloat16, "needs the package flash-attn"),
        ({"gpu": (7, 5), "packages": ["flash-attn"]}, torch.bfloat16, "needs a GPU of compute capability 8.0"),
        ({"gpu": (9, 0), "packages": ["flash-attn"]}, torch.float32, "needs load.dtype: bfloat16 or float16"),
    ],
)
def test_auto_selects_segment_for_packed_rows_without_flash_attention(monkeypatch, machine, dtype, missing):
    simulate_machine(monkeypatch, **machine)

    assert choose_attention(dtype=dtype) == ("segment", f"flash_attention_2 {missing}")
    with pytest.raises(RecipeError, match=f"load.attention: flash_attention_2 {missing}. Set load.attention: segment"):
        choose_attention("flash_attention_2", dtype=dtype)


def test_auto_selects_sdpa_for_rows_of_one_example(monkeypatch):
    simulate_machine(monkeypatch)

    assert choose_attention(packed=False)[0] == "sdpa"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GEMMA, "eager"),  # softcap
        (GptOssConfig(), "eager"),  # sinks
        (GPTJConfig(), "eager"),  # custom attention
        (FalconConfig(alibi=True), "sdpa"),  # custom attention based on sdpa
        (architectures.tiny_config("doge"), "sdpa"),  # computes with its mask
        (MistralConfig(sliding_window=8), "segment"),
        (LLAMA, "segment"),
    ],
)
def test_auto_selects_what_the_architecture_supports(monkeypatch, config, kind):
    simulate_machine(monkeypatch)

    assert choose_attention(config=config)[0] == kind


@pytest.mark.parametrize(
    ("requested", "config", "reason"),
    [
        ("segment", GEMMA, "omits a part of the attention of Gemma2ForCausalLM. Set load.attention: eager"),
        ("sdpa", GEMMA, "omits a part of the attention of Gemma2ForCausalLM. Set load.attention: eager"),
        ("segment", GPTJConfig(), "needs an architecture with replaceable attention, which GPTJForCausalLM"),
        ("segment", architectures.tiny_config("doge"), "reads its mask or adds to the scores"),
        ("flex_attention", LLAMA, "needs a CUDA device: its backward pass is not implemented on CPUs"),
        ("flash_attention_3", LLAMA, "needs a CUDA device and the package flash-attn-3"),
    ],
)
def test_unsupported_requests_are_rejected(monkeypatch, requested, config, reason):
    simulate_machine(monkeypatch)

    with pytest.raises(RecipeError, match=f"load.attention: {requested} .*{reason}"):
        choose_attention(requested, config=config)


@pytest.mark.parametrize(
    ("requested", "config", "reason"),
    [
        (
            "flash_attention_3",
            LlamaConfig(attention_dropout=0.1),
            "does not support dropout, and this model's .* is 0.1",
        ),
        ("flex_attention", LlamaConfig(attention_dropout=0.1), "does not support dropout, and this model's .* is 0.1"),
        ("flex_attention", GPTJConfig(), "is not supported by GPTJForCausalLM"),
        ("flash_attention_2", architectures.tiny_config("doge"), "is not supported by DogeForCausalLM"),
        ("flash_attention_2", architectures.tiny_config("flint"), "is not supported by FlintForCausalLM"),
    ],
)
def test_requests_that_the_model_does_not_support_are_rejected_on_a_gpu(monkeypatch, requested, config, reason):
    simulate_machine(monkeypatch, gpu=(9, 0), packages=["flash-attn", "flash-attn-3"])

    with pytest.raises(RecipeError, match=f"load.attention: {requested} {reason}"):
        choose_attention(requested, config=config)


def test_flash_attention_3_needs_hopper(monkeypatch):
    simulate_machine(monkeypatch, gpu=(8, 0), packages=["flash-attn-3"])

    with pytest.raises(RecipeError, match="needs a GPU of compute capability 9.0"):
        choose_attention("flash_attention_3")


@pytest.mark.parametrize("requested", ["eager", "sdpa", "segment", "flex_attention", "flash_attention_3"])
def test_supported_requests_are_accepted(monkeypatch, requested):
    simulate_machine(monkeypatch, gpu=(9, 0), packages=["flash-attn-3"])

    assert choose_attention(requested) == (requested, "set in the recipe")


def test_shifted_attention_is_chosen_by_its_ratio():
    assert choose_attention(s2=True)[0] == "s2"


@pytest.mark.parametrize(
    ("requested", "config", "reason"),
    [
        ("sdpa", LLAMA, "cannot be combined with load.attention: sdpa. Set load.attention: auto"),
        ("auto", GEMMA, "omits a part of the attention of Gemma2ForCausalLM. Remove it"),
    ],
)
def test_shifted_attention_is_rejected_if_unsupported(requested, config, reason):
    with pytest.raises(RecipeError, match=f"load.s2_group_size_ratio .*{reason}"):
        choose_attention(requested, config=config, s2=True)


def test_a_model_without_text_generation_is_rejected():
    with pytest.raises(RecipeError, match="model: vit is not a causal language model"):
        choose_attention(config=ViTConfig())


def test_the_class_of_a_model_with_custom_code_is_loaded(tmp_path):
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n    _supports_sdpa = False\n"
    )
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    config = LlamaConfig(auto_map=code)
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"llama"', '"own"'))

    kind, reason = choose_attention(config=AutoConfig.from_pretrained(tmp_path, trust_remote_code=True))

    assert kind == "eager"
    assert "OwnModel" in reason


def test_llama_is_the_class_of_its_config():
    assert implementation.causal_lm_class(LLAMA) is LlamaForCausalLM
