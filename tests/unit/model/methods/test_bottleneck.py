"""Bottleneck adapters: initial output, positions, and layers without the requested part."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import gpt2, llama, logits, max_difference, mixtral
from tuneline.config.sections.method import BottleneckMethod
from tuneline.errors import RecipeError
from tuneline.model.methods import adapter_method, check_fits, families
from tuneline.model.methods.bottleneck import Bottleneck

FAMILY = families["bottleneck"]


def method(**changes):
    return BottleneckMethod(**{"type": "bottleneck", "bottleneck_size": 8} | changes)


def network_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]


@pytest.mark.parametrize("build", [llama, gpt2, mixtral])
def test_initial_logits_equal_the_base(build):
    assert max_difference(logits(bases.attach("bottleneck", method(), build)), logits(build())) == 0


@pytest.mark.parametrize("build", [gpt2, mixtral])
def test_other_architectures_are_saved_and_loaded(build, tmp_path):
    model = bases.attach_and_train("bottleneck", method(), build)
    FAMILY.save(model, tmp_path)

    assert max_difference(logits(FAMILY.attach_saved(build(), tmp_path)), logits(model)) == 0


@pytest.mark.parametrize("after", [["attention"], ["mlp"], ["mlp", "attention"]])
def test_networks_are_added_after_the_requested_parts(after, tmp_path):
    model = bases.attach("bottleneck", method(after=after))
    names = {"attention": "self_attn", "mlp": "mlp"}

    FAMILY.save(model, tmp_path)

    assert sorted(network_names(model)) == sorted(
        f"model.layers.{i}.{names[part]}.bottleneck" for i in (0, 1) for part in after
    )
    assert json.loads((tmp_path / "bottleneck_config.json").read_text())["after"] == sorted(after)
    FAMILY.check_continuation(tmp_path, method(after=after))


def test_a_network_adds_to_its_input_in_the_dtype_of_the_input():
    network = Bottleneck(4, 2, torch.device("cpu"))
    torch.nn.init.ones_(network.up.weight)
    x = torch.randn(1, 3, 4, dtype=torch.bfloat16)

    difference = network(x) - x

    assert difference.dtype == torch.bfloat16
    assert difference.any()


def test_files_contain_only_the_networks(tmp_path):
    FAMILY.save(bases.attach("bottleneck", method()), tmp_path, base_name="tiny")

    tensors = load_file(tmp_path / "bottleneck.safetensors")
    assert len(tensors) == 4 * 4
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert adapter_method(tmp_path) == "bottleneck"


def test_a_layer_without_the_requested_part_is_rejected():
    def mamba():
        return MambaForCausalLM(MambaConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, state_size=4))

    with pytest.raises(
        RecipeError, match=r"method.after: backbone.layers.0 of this MambaForCausalLM has no module for mlp"
    ):
        FAMILY.check(bases.on_meta(mamba), method())
    FAMILY.check(bases.on_meta(mamba), method(after=["attention"]))


def test_a_continued_adapter_must_match_the_recipe(tmp_path):
    FAMILY.save(bases.attach("bottleneck", method()), tmp_path)

    with pytest.raises(RecipeError, match="method.bottleneck_size: the recipe says 4, .* trained with 8"):
        FAMILY.check_continuation(tmp_path, method(bottleneck_size=4))
    with pytest.raises(RecipeError, match=r"method.after: the recipe says \['mlp'\]"):
        FAMILY.check_continuation(tmp_path, method(after=["mlp"]))
    with pytest.raises(RecipeError, match="load.adapters: .*trained on a different base model"):
        check_fits(bases.on_meta(num_hidden_layers=3), tmp_path)


def test_the_adapter_is_enabled_again_after_an_exception():
    model = bases.attach_and_train("bottleneck", method())

    with pytest.raises(ZeroDivisionError), FAMILY.disable_adapter(model):
        raise ZeroDivisionError
    assert max_difference(logits(model), logits(llama())) > 0.05
