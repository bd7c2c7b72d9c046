"""A recipe's optimizer: what it takes, what it cannot follow, what must be installed, told when it is read."""

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


def test_every_optimizer_of_transformers_is_taken_or_left_out_for_a_reason():
    from transformers.training_args import OptimizerNames

    ours = {"muon", "adam_mini", "badam"}
    assert set(get_args(optimizers.Optimizer)) == set(OPTIMIZER_SPECS)
    assert {kind.value for kind in OptimizerNames} == (set(OPTIMIZER_SPECS) - ours) | set(
        compatibility.table().left_out["optimizer"]
    )


@pytest.mark.parametrize("name", sorted(compatibility.table().left_out["optimizer"]))
def test_one_that_is_left_out_says_why_and_what_to_set(name):
    with pytest.raises(ValidationError, match=rf"{name} is left out: .*; set \w+"):
        SFTConfig(optim=name)


@pytest.mark.parametrize("name", sorted(OPTIMIZER_SPECS))
def test_a_recipe_with_what_it_needs_is_read_twice(name):
    """Steps get their config as JSON, in which every key is written."""
    made = config(name)

    assert SFTConfig.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("galore_adamw", "update_gap=200", "takes no 'update_gap'. Did you mean 'update_proj_gap'"),
        ("galore_adamw", "rank=1.5", "rank is '1.5'. Give a whole number"),
        ("apollo_adamw", "scale_type=chanel", "Did you mean 'channel'"),
        ("badam", "switch_mode=randm", "Did you mean 'random'"),
        ("muon", "nesterov=yes", "Set true or false"),
        ("adamw_torch", "rank=8", "It takes beta1, beta2, eps"),
        ("sgd", "momentum=fast", "Give a number"),
        ("adamw_torch", "beta1=0.9,beta1=0.8", "Write each once"),
        ("adamw_torch", "beta1", "Write each once"),
    ],
)
def test_arguments_are_read_by_the_optimizer_that_is_named(name, args, said):
    with pytest.raises(ValidationError, match=said):
        config(name, optim_args=args)


def test_arguments_have_types():
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
def test_what_steps_inside_the_backward_pass_neither_accumulates_nor_clips(name):
    with pytest.raises(ValidationError, match="gradient_accumulation_steps: .*Set it to 1"):
        config(name, gradient_accumulation_steps=2)
    with pytest.raises(ValidationError, match="max_grad_norm: .*Set max_grad_norm: null"):
        config(name, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("galore_adamw", {"optim_target_modules": None}, "optim_target_modules: .*Name modules"),
        ("adamw_torch", NAMED, "optim_target_modules: adamw_torch treats all weights alike"),
        ("apollo_adamw_layerwise", {"weight_decay": 0.1}, "decays no weights. Set weight_decay: 0"),
        ("schedule_free_adamw", {"lr_scheduler_type": "cosine"}, "lr_scheduler_type: .*Set constant"),
        ("schedule_free_adamw", {"warmup_steps": 0.1}, "Give a whole number"),
        ("schedule_free_radam", {"warmup_steps": 5}, "follows from beta2. Set 0"),
    ],
)
def test_what_an_optimizer_would_ignore_is_refused(name, changes, said):
    with pytest.raises(ValidationError, match=said):
        config(name, **changes)


def test_a_missing_library_is_told_when_the_recipe_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    recipe = tiny.recipe(method={"type": "full"}, train={"optim": "badam"})

    with pytest.raises(RecipeError, match="badam needs the package badam, .* Run pip install badam"):
        loading.load(tiny.write_config(tmp_path / "run.yaml", recipe))
