"""VeRA, OFT and IA3: invalid sizes, experts, and trained parameters."""

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import gpt2, llama, logits, max_difference
from tuneline.config.sections.method import AdaloraMethod, Ia3Method, OftMethod, VeraMethod
from tuneline.errors import RecipeError
from tuneline.model.methods import families


def oft(**changes):
    return OftMethod(**{"type": "oft", "oft_block_size": 8} | changes)


def test_a_block_size_that_does_not_divide_is_rejected_with_valid_sizes():
    with pytest.raises(
        RecipeError, match=r"method.oft_block_size: 5 does not divide the 32 inputs of .*q_proj.*: 2, 4, 8"
    ):
        families["oft"].check(bases.on_meta(), oft(oft_block_size=5))


def test_oft_rejects_conv1d():
    with pytest.raises(RecipeError, match="a Conv1D, which peft cannot rotate"):
        families["oft"].check(bases.on_meta(gpt2), oft())


def test_oft_keeps_row_norms():
    model = bases.attach("oft", oft())
    bases.train(model, "oft", steps=8, lr=1e-2)
    before, after = llama().state_dict(), families["oft"].merge(model).state_dict()

    name = "model.layers.0.mlp.up_proj.weight"
    assert max_difference(after[name], before[name]) > 0.01
    assert torch.allclose(after[name].norm(dim=1), before[name].norm(dim=1), rtol=1e-2)


def test_vera_shares_projections_and_saves_them(tmp_path):
    model = bases.attach_and_train("vera", VeraMethod(type="vera", r=8))
    families["vera"].save(model, tmp_path)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.vera_A"].shape == (8, 64)
    assert tensors["base_model.vera_B"].shape == (64, 8)
    assert all("vera_lambda" in name for name in tensors if "vera_A" not in name and "vera_B" not in name)


def test_vera_reads_its_projections_from_the_file_and_not_from_the_seed(tmp_path):
    model = bases.attach_and_train("vera", VeraMethod(type="vera", r=8))
    families["vera"].save(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"projection_prng_key": 0', '"projection_prng_key": 1'))

    assert max_difference(logits(families["vera"].attach_saved(llama(), tmp_path)), logits(model)) <= 1e-5


def test_vera_is_reproducible_by_its_key():
    one, same, other = (
        bases.attach("vera", VeraMethod(type="vera", r=8, projection_prng_key=key)) for key in (1, 1, 2)
    )

    assert torch.equal(one.base_model.vera_A["default"], same.base_model.vera_A["default"])
    assert not torch.equal(one.base_model.vera_A["default"], other.base_model.vera_A["default"])


def ia3(**changes):
    return Ia3Method(**{"type": "ia3"} | changes)


def test_ia3_rescales_inputs_of_feed_forward_layers_and_outputs_of_the_others():
    config = ia3(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = bases.attach("ia3", config)

    shapes = {name.split(".")[-3]: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert shapes == {"k_proj": (16, 1), "down_proj": (1, 64)}


def test_ia3_adapts_all_layers_by_default(tmp_path):
    model = bases.attach_and_train("ia3", ia3(feedforward_modules=["down_proj"]))
    families["ia3"].save(model, tmp_path)

    assert max_difference(logits(families["ia3"].attach_saved(llama(), tmp_path)), logits(model)) <= 1e-5
    families["ia3"].check_continuation(tmp_path, ia3(feedforward_modules=["down_proj"]), bases.on_meta())
    with pytest.raises(RecipeError, match="method.feedforward_modules: the recipe says .* was trained with"):
        families["ia3"].check_continuation(tmp_path, ia3(feedforward_modules=["up_proj"]), bases.on_meta())


def test_feed_forward_layers_of_ia3_must_be_targets():
    with pytest.raises(RecipeError, match="method.feedforward_modules: .*down_proj is not among method.target_modules"):
        families["ia3"].check(bases.on_meta(), ia3(target_modules=["k_proj"], feedforward_modules=["down_proj"]))


@pytest.mark.parametrize(
    "config",
    [oft(), ia3(), VeraMethod(type="vera"), AdaloraMethod(type="adalora")],
    ids=["oft", "ia3", "vera", "adalora"],
)
def test_experts_in_one_parameter_are_rejected_with_the_remaining_layers(config):
    family = families[config.type]

    with pytest.raises(
        RecipeError, match=rf"method {config.type} cannot adapt experts .*\[k_proj, o_proj, q_proj, v_proj\]"
    ):
        family.check(bases.on_meta(bases.mixtral), config)
    family.check(bases.on_meta(bases.mixtral), config.model_copy(update={"target_modules": ["q_proj"]}))
