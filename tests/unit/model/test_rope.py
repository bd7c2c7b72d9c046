"""RoPE scaling: longer contexts than in the model's training."""

import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from tuneline.config.sections.load import RopeScaling
from tuneline.errors import RecipeError
from tuneline.model import rope

OLD = 32
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
KINDS = ["linear", "dynamic", "yarn", "llama3"]


def llama(**parameters):
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=OLD)
    config.rope_parameters.update(parameters)
    return config


def scaling(kind, factor=None):
    return RopeScaling(rope_type=kind, factor=factor)


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits(model, length):
    return model(torch.arange(length)[None] % 64, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_rope_theta_is_kept(kind):
    config = llama(rope_theta=12345.0)

    rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.rope_parameters["rope_theta"] == 12345.0
    assert config.rope_parameters["rope_type"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_factor_is_the_smallest_sufficient_integer(kind):
    config = llama()

    description = rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.rope_parameters["factor"] == 4.0
    assert description == f"rotary positions scaled by 4 ({kind}), from 32 to 128"


@pytest.mark.parametrize(("kind", "positions"), [("linear", 128), ("yarn", 128), ("llama3", 128), ("dynamic", OLD)])
def test_the_config_contains_the_new_number_of_positions(kind, positions):
    config = llama()

    rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.max_position_embeddings == positions
    rope.check_max_length(config, 128)
    with pytest.raises(RecipeError, match="129, but the model has 128 positions"):
        rope.check_max_length(config, 129)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_model_differs_beyond_its_old_length_and_is_finite(kind):
    plain, config = build(llama()), llama()
    rope.scale_rope(config, scaling(kind), max_length=100)

    scaled = logits(build(config), 100)

    assert scaled.isfinite().all()
    assert (scaled - logits(plain, 100))[:, OLD:].abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_close_to_one_has_little_effect(kind):
    config = llama()
    rope.scale_rope(config, scaling(kind, factor=1 + 1e-6), max_length=OLD)

    torch.testing.assert_close(logits(build(config), OLD), logits(build(llama()), OLD), atol=1e-5, rtol=1e-4)


def test_dynamic_scaling_does_not_change_short_rows():
    config = llama()
    rope.scale_rope(config, scaling("dynamic"), max_length=100)

    assert torch.equal(logits(build(config), OLD), logits(build(llama()), OLD))


def test_linear_scaling_interpolates_positions():
    config = llama()
    rope.scale_rope(config, scaling("linear", factor=2), max_length=64)

    scaled, plain = build(config).model.rotary_emb, build(llama()).model.rotary_emb

    torch.testing.assert_close(scaled.inv_freq, plain.inv_freq / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_is_saved_with_the_model(kind, tmp_path):
    config = llama()
    rope.scale_rope(config, scaling(kind), max_length=100)
    model = build(config)

    model.save_pretrained(tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == config.rope_parameters
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == config.max_position_embeddings
    assert torch.equal(logits(loaded, 100), logits(model, 100))


def test_llama3_gets_its_two_frequency_factors():
    config = llama()

    rope.scale_rope(config, scaling("llama3"), max_length=100)

    factors = {key: config.rope_parameters[key] for key in ("low_freq_factor", "high_freq_factor")}
    assert factors == {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert config.rope_parameters["original_max_position_embeddings"] == OLD


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "dynamic"])
def test_a_scaled_model_can_be_scaled_further(kind):
    once, twice = llama(), llama()
    rope.scale_rope(once, scaling(kind), max_length=256)
    rope.scale_rope(twice, scaling(kind), max_length=64)

    rope.scale_rope(twice, scaling(kind), max_length=256)

    assert twice.rope_parameters == once.rope_parameters
    assert twice.max_position_embeddings == once.max_position_embeddings


def test_replacing_the_scaling_type_is_rejected():
    config = llama()
    rope.scale_rope(config, scaling("yarn"), max_length=64)

    with pytest.raises(
        RecipeError, match=r"rope_type: linear, but .* 'yarn', which would be lost. Set rope_type: yarn"
    ):
        rope.scale_rope(config, scaling("linear"), max_length=256)


def test_a_scaling_type_without_recipe_value_is_rejected():
    with pytest.raises(RecipeError, match=r"'longrope', which would be lost. Remove rope_scaling\."):
        rope.scale_rope(llama(rope_type="longrope"), scaling("linear"), max_length=256)


def test_only_layers_with_full_attention_are_scaled():
    layers = ["sliding_attention", "full_attention"]
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma3TextConfig(**SIZES, **heads, max_position_embeddings=OLD, layer_types=layers)
    before = dict(config.rope_parameters["sliding_attention"])

    rope.scale_rope(config, scaling("linear"), max_length=64)

    assert config.rope_parameters["sliding_attention"] == before
    assert config.rope_parameters["full_attention"] == {
        "rope_type": "linear",
        "rope_theta": 1_000_000.0,
        "factor": 2.0,
    }
    assert logits(build(config), 64).isfinite().all()


def test_the_text_config_of_a_multimodal_model_is_scaled():
    text = {**SIZES, "num_attention_heads": 2, "max_position_embeddings": OLD, "layer_types": ["full_attention"] * 2}
    config = AutoConfig.for_model("gemma3", text_config=text)

    rope.scale_rope(config, scaling("linear"), max_length=64)

    assert config.text_config.max_position_embeddings == 64
    assert config.text_config.rope_parameters["full_attention"]["factor"] == 2.0


def test_scaling_is_rejected_if_rows_fit():
    with pytest.raises(RecipeError, match=r"load.rope_scaling: tokenize.max_length is 32 .* no scaling is needed\."):
        rope.scale_rope(llama(), scaling("linear"), max_length=OLD)


def test_an_explicit_factor_applies_to_short_rows():
    config = llama()

    rope.scale_rope(config, scaling("yarn", factor=2.5), max_length=OLD)

    assert config.max_position_embeddings == 80


def test_an_insufficient_factor_is_rejected():
    with pytest.raises(
        RecipeError, match=r"load.rope_scaling.factor: 2 extends 32 positions to 64, .* Set it to 4, or"
    ):
        rope.scale_rope(llama(), scaling("linear", factor=2), max_length=100)


@pytest.mark.parametrize("config", [GPT2Config(n_positions=OLD), BloomConfig()], ids=["learned", "alibi"])
def test_models_without_rotary_positions_are_rejected(config):
    with pytest.raises(RecipeError, match=rf"load.rope_scaling: {config.model_type} has no rotary positions"):
        rope.scale_rope(config, scaling("linear"), max_length=100)


@pytest.mark.parametrize(
    ("config", "advice"),
    [(llama(), "or set load.rope_scaling"), (GPT2Config(n_positions=OLD), "or gpt2 cannot be scaled")],
    ids=["rotary", "learned"],
)
def test_rows_that_are_too_long_are_rejected(config, advice):
    rope.check_max_length(config, OLD)

    with pytest.raises(RecipeError, match=rf"tokenize.max_length: 33, but the model has 32 positions.*{advice}"):
        rope.check_max_length(config, OLD + 1)


@pytest.mark.parametrize("config", [BloomConfig(), AutoConfig.for_model("mamba"), AutoConfig.for_model("jamba")])
def test_a_model_without_limit_accepts_any_length(config):
    rope.check_max_length(config, 10**9)


@pytest.mark.xfail(strict=True, raises=TypeError, reason="docs/upstream.md")
def test_setting_rope_scaling_keeps_rope_theta():
    config = llama()

    config.rope_scaling = {"rope_type": "linear", "factor": 2.0}

    LlamaForCausalLM(config)


def test_the_yarn_factor_matches_the_expectation_of_transformers(caplog):
    config = llama()
    rope.scale_rope(config, scaling("yarn"), max_length=1000)

    config.validate_rope()

    ratio = config.max_position_embeddings / config.rope_parameters["original_max_position_embeddings"]
    assert ratio == config.rope_parameters["factor"] == math.ceil(1000 / OLD)
