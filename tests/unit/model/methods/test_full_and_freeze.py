"""Full and freeze tuning: trained weights, their dtype, and errors for adapters."""

import pytest
import torch

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import NEW_IDS, gpt2, llama, logits, max_difference, mixtral
from tuneline.config.sections.method import FreezeMethod, FullMethod
from tuneline.errors import RecipeError
from tuneline.model.methods import families

FREEZE = families["freeze"]


def freeze(**changes):
    return FreezeMethod(**{"type": "freeze"} | changes)


def trained_model(config, build=llama):
    model = FREEZE.attach(build(), config)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_last_layers_are_trained_or_the_first_if_the_number_is_negative():
    three = {"num_hidden_layers": 3}

    last = trained_model(freeze(layers=2), lambda: llama(**three))
    first = trained_model(freeze(layers=-1), lambda: llama(**three))

    assert {name.split(".")[2] for name in last} == {"1", "2"}
    assert {name.split(".")[2] for name in first} == {"0"}
    assert len(last) == 2 * len(first) == 18


def test_parts_of_layers_and_modules_outside_are_trained():
    names = trained_model(freeze(layers=1, trainable_modules=["mlp", "q_proj"], extra_modules=["norm"]))

    assert names == {
        "model.norm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }


def test_experts_can_be_trained():
    names = trained_model(freeze(layers=1, trainable_modules=["experts"]), mixtral)

    assert names == {"model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"}


def test_layers_of_another_architecture_are_found():
    assert {name.split(".")[2] for name in trained_model(freeze(layers=1), gpt2)} == {"1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, "method.layers: 3, but this model has 2 layers"),
        ({"layers": -3}, "method.layers: -3, but this model has 2 layers"),
        ({"trainable_modules": ["mpl"]}, r"method.trainable_modules: 'mpl' is not a module .* Did you mean 'mlp'\?"),
        ({"extra_modules": ["lm_hed"]}, r"method.extra_modules: 'lm_hed' is not a module .* Did you mean 'lm_head'\?"),
    ],
)
def test_unknown_layers_and_modules_are_rejected(changes, message):
    with pytest.raises(RecipeError, match=message):
        FREEZE.check(bases.on_meta(), freeze(**changes))


def test_frozen_weights_do_not_change():
    model = llama()
    before = bases.copy_weights(model)
    names = trained_model(freeze(layers=1), lambda: model)

    bases.train(model, "freeze")

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == names


def test_new_rows_require_trained_embedding_and_head():
    FREEZE.check(bases.on_meta(), freeze(extra_modules=["lm_head"]), new_ids=NEW_IDS)
    with pytest.raises(RecipeError, match="load.new_tokens: .* Add embed_tokens to method.extra_modules"):
        FREEZE.check(bases.on_meta(), freeze(), new_ids=NEW_IDS)
    with pytest.raises(RecipeError, match="load.new_tokens: .* Add embed_tokens to method.extra_modules"):
        FREEZE.check(bases.on_meta(tied=False), freeze(extra_modules=["lm_head"]), new_ids=NEW_IDS)


@pytest.mark.parametrize("build", [llama, mixtral])
def test_initial_logits_of_a_16_bit_model_match_the_base(build):
    def half():
        return build().bfloat16()

    model = FREEZE.attach(half(), freeze(layers=1, extra_modules=["norm"]))

    spread = logits(half()).std()
    assert max_difference(logits(model), logits(half())) < 0.1 * spread


def test_a_tied_head_of_a_16_bit_model_is_trained_in_float32_under_both_names():
    model = FREEZE.attach(llama(dtype=torch.bfloat16), freeze(layers=0, extra_modules=["lm_head"]))

    assert model.model.embed_tokens.weight is model.lm_head.weight
    assert model.lm_head.weight.dtype == torch.float32
    assert logits(model).isfinite().all()


def test_a_merged_model_has_one_dtype_and_no_hooks():
    model = FREEZE.attach(llama(dtype=torch.bfloat16), freeze(layers=1))
    bases.train(model, "freeze")
    before = logits(model)

    merged = FREEZE.merge(model)

    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in merged.modules())
    assert max_difference(logits(merged), before) < 0.1 * before.std()


@pytest.mark.parametrize("config", [FullMethod(type="full"), freeze()])
def test_a_full_model_cannot_be_used_as_an_adapter(config, tmp_path):
    family = families[config.type]
    model = bases.attach_and_train(config.type, config)
    family.save(model, tmp_path)

    assert family.kind == "full"
    assert max_difference(logits(type(model).from_pretrained(tmp_path)), logits(model)) == 0
    for call in (
        lambda: family.attach_saved(llama(), tmp_path),
        lambda: family.check_fits(llama(), tmp_path),
        lambda: family.check_continuation(tmp_path, config),
    ):
        with pytest.raises(RecipeError, match=f"load.adapters: method {config.type} trains the model itself"):
            call()
    with pytest.raises(RecipeError, match="there is no base model to compare with"), family.disable_adapter(model):
        pass
    assert not family.disabling_restores_base(config)
