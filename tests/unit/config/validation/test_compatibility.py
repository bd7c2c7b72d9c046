"""Incompatible options of a recipe are refused with a reason."""

import pytest

from tests import tiny
from tuneline.config import load as loading
from tuneline.config.validation import compatibility
from tuneline.errors import RecipeError


def refusal(tmp_path, **changes):
    with pytest.raises(RecipeError) as caught:
        loading.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**changes)))
    return str(caught.value)


def test_full_tuning_of_quantized_weights_is_refused(tmp_path):
    message = refusal(tmp_path, method={"type": "full"}, load={"quantization": {"type": "bnb_4bit"}})

    assert "method (full) with load.quantization (bnb_4bit) is not supported" in message
    assert "Set load.quantization: null" in message


def test_virtual_tokens_and_packing_are_refused(tmp_path):
    message = refusal(tmp_path, method={"type": "prompt"}, tokenize={"packing": True})

    assert "tokenize.packing: false" in message


def test_galore_without_trained_matrices_is_refused(tmp_path):
    message = refusal(tmp_path, train={"optim": "galore_adamw", "optim_target_modules": ["mlp"]})

    assert "method (lora)" in message
    assert "method.type: full" in message


def test_only_the_last_adapter_is_continued(tmp_path):
    adapters = [{"path": "a", "use": "continue"}, {"path": "b"}]

    assert "only the last adapter" in refusal(tmp_path, load={"adapters": adapters})


def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path):
    load = {"adapters": [{"path": "a"}], "quantization": {"type": "bnb_8bit"}}

    assert "Merge it into the full model first" in refusal(tmp_path, load=load)


def test_new_tokens_are_unique(tmp_path):
    load = {"new_tokens": ["x"], "new_special_tokens": ["x"]}

    assert "'x' is listed twice" in refusal(tmp_path, load=load)


def test_adalora_ranks_decrease(tmp_path):
    assert "ranks can only decrease" in refusal(tmp_path, method={"type": "adalora", "init_r": 2, "target_r": 4})


def test_every_axis_names_its_key():
    assert set(compatibility.RECIPE_KEYS) == set(compatibility.table().axes)


def test_every_rule_uses_existing_axes_and_values():
    table = compatibility.table()
    for rule in (*table.incompatible, *table.requirements):
        for axis, values in rule.when.items():
            assert set(values) <= set(table.axes[axis]), rule
    assert {axis: value in table.axes[axis] for axis, value in table.defaults.items()} == dict.fromkeys(
        table.axes, True
    )


def test_the_values_of_the_matrix_are_those_of_the_recipe():
    """Every option of a recipe is in the table."""
    from typing import get_args

    from tuneline.config.sections.load import ModelLoadOptions
    from tuneline.config.training.base import SFTConfig

    for axis, model, field in (
        ("dtype", ModelLoadOptions, "dtype"),
        ("attention", ModelLoadOptions, "attention"),
        ("gradient_checkpointing", ModelLoadOptions, "gradient_checkpointing"),
        ("kernels", ModelLoadOptions, "kernels"),
        ("optimizer", SFTConfig, "optim"),
    ):
        values = set(compatibility.table().axes[axis]) | ({"auto"} if axis == "dtype" else set())
        assert set(get_args(model.model_fields[field].annotation)) == values, axis
