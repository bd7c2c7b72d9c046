"""Which kind of attention is taken, on which machine, for which architecture; and why another is not."""

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
from tuneline.model.attention import choose

LLAMA = LlamaConfig()
GEMMA = Gemma2Config()


def pretend(monkeypatch, *, gpu=None, packages=()):
    """Fake a machine: `gpu` is a compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    for kind, (package, _, capability) in choose.FLASH_REQUIREMENTS.items():
        monkeypatch.setitem(choose.FLASH_REQUIREMENTS, kind, (package, lambda p=package: p in packages, capability))


def chosen(requested="auto", config=LLAMA, dtype=torch.bfloat16, packed=True, s2=False):
    return choose.choose_attention(requested, config=config, dtype=dtype, packed=packed, s2=s2)


def test_auto_takes_flash_attention_where_everything_is_there(monkeypatch):
    pretend(monkeypatch, gpu=(8, 0), packages=["flash-attn"])

    assert chosen() == ("flash_attention_2", "the fastest on this machine")


@pytest.mark.parametrize(
    ("machine", "dtype", "missing"),
    [
        ({}, torch.bfloat16, "needs a CUDA device and the package flash-attn"),
        ({"gpu": (8, 0)}, torch.bfloat16, "needs the package flash-attn"),
        ({"gpu": (7, 5), "packages": ["flash-attn"]}, torch.bfloat16, "needs a GPU of compute capability 8.0"),
        ({"gpu": (9, 0), "packages": ["flash-attn"]}, torch.float32, "needs load.dtype: bfloat16 or float16"),
    ],
)
def test_without_flash_attention_packed_rows_take_segment_and_it_is_said_why(monkeypatch, machine, dtype, missing):
    pretend(monkeypatch, **machine)

    assert chosen(dtype=dtype) == ("segment", f"flash_attention_2 {missing}")
    with pytest.raises(RecipeError, match=f"load.attention: flash_attention_2 {missing}. Set load.attention: segment"):
        chosen("flash_attention_2", dtype=dtype)


def test_rows_of_one_example_take_sdpa(monkeypatch):
    pretend(monkeypatch)

    assert chosen(packed=False)[0] == "sdpa"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GEMMA, "eager"),  # softcap
        (GptOssConfig(), "eager"),  # sinks
        (GPTJConfig(), "eager"),  # attention of its own
        (FalconConfig(alibi=True), "sdpa"),  # attention of its own, by sdpa
        (architectures.tiny_config("doge"), "sdpa"),  # computes with its mask
        (MistralConfig(sliding_window=8), "segment"),
        (LLAMA, "segment"),
    ],
)
def test_auto_takes_what_the_architecture_allows(monkeypatch, config, kind):
    pretend(monkeypatch)

    assert chosen(config=config)[0] == kind


@pytest.mark.parametrize(
    ("requested", "config", "why"),
    [
        ("segment", GEMMA, "leaves out a part of what Gemma2ForCausalLM computes. Set load.attention: eager"),
        ("sdpa", GEMMA, "leaves out a part of what Gemma2ForCausalLM computes. Set load.attention: eager"),
        ("segment", GPTJConfig(), "needs an architecture that lets its attention be replaced, and GPTJForCausalLM"),
        ("segment", architectures.tiny_config("doge"), "reads its mask or adds to the scores"),
        ("flex_attention", LLAMA, "needs a CUDA device, for its backward pass is not implemented on a CPU"),
        ("flash_attention_3", LLAMA, "needs a CUDA device and the package flash-attn-3"),
    ],
)
def test_what_is_not_possible_is_refused(monkeypatch, requested, config, why):
    pretend(monkeypatch)

    with pytest.raises(RecipeError, match=f"load.attention: {requested} .*{why}"):
        chosen(requested, config=config)


@pytest.mark.parametrize(
    ("requested", "config", "why"),
    [
        ("flash_attention_3", LlamaConfig(attention_dropout=0.1), "has no dropout, and this model's .* is 0.1"),
        ("flex_attention", LlamaConfig(attention_dropout=0.1), "has no dropout, and this model's .* is 0.1"),
        ("flex_attention", GPTJConfig(), "is not supported by GPTJForCausalLM"),
        ("flash_attention_2", architectures.tiny_config("doge"), "is not supported by DogeForCausalLM"),
        ("flash_attention_2", architectures.tiny_config("flint"), "is not supported by FlintForCausalLM"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_on_a_gpu(monkeypatch, requested, config, why):
    pretend(monkeypatch, gpu=(9, 0), packages=["flash-attn", "flash-attn-3"])

    with pytest.raises(RecipeError, match=f"load.attention: {requested} {why}"):
        chosen(requested, config=config)


def test_flash_attention_3_needs_hopper(monkeypatch):
    pretend(monkeypatch, gpu=(8, 0), packages=["flash-attn-3"])

    with pytest.raises(RecipeError, match="needs a GPU of compute capability 9.0"):
        chosen("flash_attention_3")


@pytest.mark.parametrize("requested", ["eager", "sdpa", "segment", "flex_attention", "flash_attention_3"])
def test_a_request_that_is_possible_is_followed(monkeypatch, requested):
    pretend(monkeypatch, gpu=(9, 0), packages=["flash-attn-3"])

    assert chosen(requested) == (requested, "as the recipe says")


def test_shifted_attention_is_chosen_by_its_ratio():
    assert chosen(s2=True)[0] == "s2"


@pytest.mark.parametrize(
    ("requested", "config", "why"),
    [
        ("sdpa", LLAMA, "load.attention: sdpa asks for another. Set load.attention: auto"),
        ("auto", GEMMA, "leaves out a part of what Gemma2ForCausalLM computes. Leave it out"),
    ],
)
def test_shifted_attention_is_refused_where_it_cannot_be(requested, config, why):
    with pytest.raises(RecipeError, match=f"load.s2_group_size_ratio .*{why}"):
        chosen(requested, config=config, s2=True)


def test_a_model_that_writes_no_text_is_refused():
    with pytest.raises(RecipeError, match="model: vit is no causal language model"):
        chosen(config=ViTConfig())


def test_a_model_with_its_own_code_is_looked_into(tmp_path):
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n    _supports_sdpa = False\n"
    )
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    config = LlamaConfig(auto_map=code)
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"llama"', '"own"'))

    kind, why = chosen(config=AutoConfig.from_pretrained(tmp_path, trust_remote_code=True))

    assert kind == "eager"
    assert "OwnModel" in why


def test_llama_is_the_class_of_its_config():
    assert choose.causal_lm_class(LLAMA) is LlamaForCausalLM
