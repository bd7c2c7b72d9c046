"""Positions beyond those that a model was trained on."""

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
def test_the_base_of_the_frequencies_is_kept(kind):
    config = llama(rope_theta=12345.0)

    rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.rope_parameters["rope_theta"] == 12345.0
    assert config.rope_parameters["rope_type"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_is_the_least_whole_one_that_reaches(kind):
    config = llama()

    said = rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.rope_parameters["factor"] == 4.0
    assert said == f"rotary positions stretched by 4 ({kind}), from 32 to 128"


@pytest.mark.parametrize(("kind", "positions"), [("linear", 128), ("yarn", 128), ("llama3", 128), ("dynamic", OLD)])
def test_the_config_tells_how_far_it_reaches(kind, positions):
    config = llama()

    rope.scale_rope(config, scaling(kind), max_length=100)

    assert config.max_position_embeddings == positions
    rope.check_max_length(config, 128)
    with pytest.raises(RecipeError, match="129, and the model has 128 positions"):
        rope.check_max_length(config, 129)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretched_model_is_finite_and_other_beyond_its_old_length(kind):
    plain, config = build(llama()), llama()
    rope.scale_rope(config, scaling(kind), max_length=100)

    stretched = logits(build(config), 100)

    assert stretched.isfinite().all()
    assert (stretched - logits(plain, 100))[:, OLD:].abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_that_is_almost_one_changes_almost_nothing(kind):
    config = llama()
    rope.scale_rope(config, scaling(kind, factor=1 + 1e-6), max_length=OLD)

    torch.testing.assert_close(logits(build(config), OLD), logits(build(llama()), OLD), atol=1e-5, rtol=1e-4)


def test_dynamic_stretching_leaves_short_rows_as_they_were():
    config = llama()
    rope.scale_rope(config, scaling("dynamic"), max_length=100)

    assert torch.equal(logits(build(config), OLD), logits(build(llama()), OLD))


def test_linear_stretching_puts_positions_between():
    config = llama()
    rope.scale_rope(config, scaling("linear", factor=2), max_length=64)

    stretched, plain = build(config).model.rotary_emb, build(llama()).model.rotary_emb

    torch.testing.assert_close(stretched.inv_freq, plain.inv_freq / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_survive_saving(kind, tmp_path):
    config = llama()
    rope.scale_rope(config, scaling(kind), max_length=100)
    model = build(config)

    model.save_pretrained(tmp_path)

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == config.rope_parameters
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == config.max_position_embeddings
    assert torch.equal(logits(again, 100), logits(model, 100))


def test_llama3_gets_its_two_bounds():
    config = llama()

    rope.scale_rope(config, scaling("llama3"), max_length=100)

    bounds = {key: config.rope_parameters[key] for key in ("low_freq_factor", "high_freq_factor")}
    assert bounds == {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert config.rope_parameters["original_max_position_embeddings"] == OLD


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "dynamic"])
def test_what_was_stretched_is_stretched_further(kind):
    once, twice = llama(), llama()
    rope.scale_rope(once, scaling(kind), max_length=256)
    rope.scale_rope(twice, scaling(kind), max_length=64)

    rope.scale_rope(twice, scaling(kind), max_length=256)

    assert twice.rope_parameters == once.rope_parameters
    assert twice.max_position_embeddings == once.max_position_embeddings


def test_another_stretching_is_refused_since_the_old_one_would_be_lost():
    config = llama()
    rope.scale_rope(config, scaling("yarn"), max_length=64)

    with pytest.raises(
        RecipeError, match=r"rope_type: linear, and .* 'yarn', which would be lost. Set rope_type: yarn"
    ):
        rope.scale_rope(config, scaling("linear"), max_length=256)


def test_a_kind_that_no_recipe_has_is_left_alone():
    with pytest.raises(RecipeError, match=r"'longrope', which would be lost. Leave rope_scaling out\."):
        rope.scale_rope(llama(rope_type="longrope"), scaling("linear"), max_length=256)


def test_only_layers_that_see_the_whole_row_are_stretched():
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


def test_a_model_of_text_and_more_is_stretched_in_its_text_part():
    text = {**SIZES, "num_attention_heads": 2, "max_position_embeddings": OLD, "layer_types": ["full_attention"] * 2}
    config = AutoConfig.for_model("gemma3", text_config=text)

    rope.scale_rope(config, scaling("linear"), max_length=64)

    assert config.text_config.max_position_embeddings == 64
    assert config.text_config.rope_parameters["full_attention"]["factor"] == 2.0


def test_rows_that_fit_leave_nothing_to_stretch():
    with pytest.raises(RecipeError, match=r"load.rope_scaling: tokenize.max_length is 32, .* nothing to stretch\."):
        rope.scale_rope(llama(), scaling("linear"), max_length=OLD)


def test_a_factor_that_is_given_holds_for_short_rows_too():
    config = llama()

    rope.scale_rope(config, scaling("yarn", factor=2.5), max_length=OLD)

    assert config.max_position_embeddings == 80


def test_a_factor_that_does_not_reach_is_refused():
    with pytest.raises(RecipeError, match=r"load.rope_scaling.factor: 2 makes 64 positions of 32, .* Set it to 4, or"):
        rope.scale_rope(llama(), scaling("linear", factor=2), max_length=100)


@pytest.mark.parametrize("config", [GPT2Config(n_positions=OLD), BloomConfig()], ids=["learned", "alibi"])
def test_models_without_rotary_positions_are_refused(config):
    with pytest.raises(RecipeError, match=rf"load.rope_scaling: {config.model_type} has no rotary positions"):
        rope.scale_rope(config, scaling("linear"), max_length=100)


@pytest.mark.parametrize(
    ("config", "advice"),
    [(llama(), "or set load.rope_scaling"), (GPT2Config(n_positions=OLD), "or gpt2 cannot be stretched")],
    ids=["rotary", "learned"],
)
def test_rows_that_are_too_long_are_refused(config, advice):
    rope.check_max_length(config, OLD)

    with pytest.raises(RecipeError, match=rf"tokenize.max_length: 33, and the model has 32 positions.*{advice}"):
        rope.check_max_length(config, OLD + 1)


@pytest.mark.parametrize("config", [BloomConfig(), AutoConfig.for_model("mamba"), AutoConfig.for_model("jamba")])
def test_a_model_without_a_limit_takes_any_row(config):
    rope.check_max_length(config, 10**9)


@pytest.mark.xfail(strict=True, raises=TypeError, reason="docs/upstream.md")
def test_a_config_that_is_given_a_rope_scaling_keeps_its_base():
    config = llama()

    config.rope_scaling = {"rope_type": "linear", "factor": 2.0}

    LlamaForCausalLM(config)


def test_the_factor_of_a_yarn_is_what_the_library_expects(caplog):
    config = llama()
    rope.scale_rope(config, scaling("yarn"), max_length=1000)

    config.validate_rope()

    ratio = config.max_position_embeddings / config.rope_parameters["original_max_position_embeddings"]
    assert ratio == config.rope_parameters["factor"] == math.ceil(1000 / OLD)
