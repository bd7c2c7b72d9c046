"""Optimizers in a recipe: arguments, unsupported settings and missing packages are checked when the recipe is read."""

from typing import get_args

import pytest
from pydantic import ValidationError

from tests import tiny
from tuneline.config import load as loading
from tuneline.config.training import optimizers
from tuneline.config.training.base import SFTConfig
from tuneline.config.training.optimizers import OPTIMIZER_SPECS
from tuneline.config.validation import compatibility
from tuneline.errors import RecipeError

NAMED = {"optim_target_modules": ["mlp"]}
FREE = {"lr_scheduler_type": "constant"}
IN_BACKWARD = sorted(name for name, traits in OPTIMIZER_SPECS.items() if traits.steps_in_backward)


def config(name, **changes):
    traits = OPTIMIZER_SPECS[name]
    needed = {**(NAMED if traits.low_rank else {}), **(FREE if traits.schedule_free else {})}
    needed |= {"max_grad_norm": None} if traits.steps_in_backward else {}
    return SFTConfig(**{"optim": name, **needed, **changes})


def test_every_optimizer_of_transformers_is_supported_or_excluded_with_a_reason():
    from transformers.training_args import OptimizerNames

    own_optimizers = {"muon", "adam_mini", "badam"}
    assert set(get_args(optimizers.Optimizer)) == set(OPTIMIZER_SPECS)
    assert {kind.value for kind in OptimizerNames} == (set(OPTIMIZER_SPECS) - own_optimizers) | set(
        compatibility.table().unsupported["optimizer"]
    )


@pytest.mark.parametrize("name", sorted(compatibility.table().unsupported["optimizer"]))
def test_an_excluded_optimizer_is_reported_with_reason_and_alternative(name):
    with pytest.raises(ValidationError, match=rf"{name} is not supported: .*; set \w+"):
        SFTConfig(optim=name)


@pytest.mark.parametrize("name", sorted(OPTIMIZER_SPECS))
def test_a_valid_config_survives_a_round_trip_through_json(name):
    """Steps receive their config as JSON with all keys set."""
    result = config(name)

    assert SFTConfig.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("galore_adamw", "update_gap=200", "does not accept 'update_gap'. Did you mean 'update_proj_gap'"),
        ("galore_adamw", "rank=1.5", "rank must be a whole number, got '1.5'"),
        ("apollo_adamw", "scale_type=chanel", "Did you mean 'channel'"),
        ("badam", "switch_mode=randm", "Did you mean 'random'"),
        ("muon", "nesterov=yes", "must be true or false"),
        ("adamw_torch", "rank=8", "Accepted: beta1, beta2, eps"),
        ("sgd", "momentum=fast", "must be a number"),
        ("adamw_torch", "beta1=0.9,beta1=0.8", "each name once"),
        ("adamw_torch", "beta1", "each name once"),
    ],
)
def test_optimizer_arguments_are_validated(name, args, message):
    with pytest.raises(ValidationError, match=message):
        config(name, optim_args=args)


def test_optimizer_arguments_have_types():
    text = "rank=1, scale=128, scale_type=tensor,update_proj_gap=200"

    assert optimizers.parse_optim_args("apollo_adamw", text) == {
        "rank": 1,
        "scale": 128.0,
        "scale_type": "tensor",
        "update_proj_gap": 200,
    }
    assert optimizers.parse_optim_args("badam", "include_embedding=True,switch_mode=fixed") == {
        "include_embedding": True,
        "switch_mode": "fixed",
    }


@pytest.mark.parametrize("name", IN_BACKWARD)
def test_optimizers_that_step_in_backward_neither_accumulate_nor_clip(name):
    with pytest.raises(ValidationError, match="gradient_accumulation_steps: .*Set it to 1"):
        config(name, gradient_accumulation_steps=2)
    with pytest.raises(ValidationError, match="max_grad_norm: .*Set max_grad_norm: null"):
        config(name, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("galore_adamw", {"optim_target_modules": None}, "optim_target_modules: .*Set them"),
        ("adamw_torch", NAMED, "optim_target_modules: adamw_torch does not use it"),
        ("apollo_adamw_layerwise", {"weight_decay": 0.1}, "does not support weight decay. Set weight_decay: 0"),
        ("schedule_free_adamw", {"lr_scheduler_type": "cosine"}, "lr_scheduler_type: .*Set constant"),
        ("schedule_free_adamw", {"warmup_steps": 0.1}, "Set a whole number"),
        ("schedule_free_radam", {"warmup_steps": 5}, "derives its warmup from beta2. Set 0"),
    ],
)
def test_settings_that_an_optimizer_ignores_are_refused(name, changes, message):
    with pytest.raises(ValidationError, match=message):
        config(name, **changes)


def test_a_missing_library_is_reported_when_the_recipe_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    recipe = tiny.recipe(method={"type": "full"}, train={"optim": "badam"})

    with pytest.raises(RecipeError, match="badam requires the package badam, .* Run pip install badam"):
        loading.load(tiny.write_config(tmp_path / "run.yaml", recipe))
