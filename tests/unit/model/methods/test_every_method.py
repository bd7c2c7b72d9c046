"""What holds for every method: saved is what was trained, merged what was saved, and only what should be is trained."""

from typing import get_args

import pytest
import torch

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import llama, logits, max_difference
from tuneline.config.sections import method as config
from tuneline.errors import RecipeError
from tuneline.model.methods import adapter_method, check_fits, families
from tuneline.model.methods.base import MethodFamily

pytestmark = pytest.mark.matrix(every=4)

LAYERS = ["q_proj", "v_proj", "down_proj"]
LORA = {"type": "lora", "r": 4, "lora_alpha": 8}

ADAPTERS = {
    "lora": config.LoraMethod(**LORA),
    "lora-named": config.LoraMethod(**LORA, target_modules=LAYERS),
    "rslora": config.LoraMethod(**LORA, use_rslora=True),
    "dora": config.LoraMethod(**LORA, use_dora=True),
    "gaussian": config.LoraMethod(**LORA, init_lora_weights="gaussian"),
    "whole-head": config.LoraMethod(**LORA, modules_to_save=["lm_head", "norm"]),
    "adalora": config.AdaloraMethod(type="adalora", init_r=4, target_r=2),
    "vera": config.VeraMethod(type="vera", r=8),
    "oft": config.OftMethod(type="oft", oft_block_size=8),
    "ia3": config.Ia3Method(type="ia3", target_modules=LAYERS, feedforward_modules=["down_proj"]),
}
FROM_BASE = {
    "pissa": config.LoraMethod(**LORA, init_lora_weights="pissa"),
    "olora": config.LoraMethod(**LORA, init_lora_weights="olora"),
    "pissa-rslora": config.LoraMethod(**LORA, init_lora_weights="pissa", use_rslora=True),
    "olora-dora": config.LoraMethod(**LORA, init_lora_weights="olora", use_dora=True),
    "pissa-whole": config.LoraMethod(**LORA, init_lora_weights="pissa", modules_to_save=["norm"]),
}
BESIDE = {
    "prefix": config.PrefixMethod(type="prefix", num_virtual_tokens=5),
    "prefix-network": config.PrefixMethod(type="prefix", num_virtual_tokens=5, prefix_projection=True),
    "prompt": config.PromptMethod(type="prompt", num_virtual_tokens=5),
    "p_tuning": config.PTuningMethod(type="p_tuning", num_virtual_tokens=5, encoder_hidden_size=16),
    "bottleneck": config.BottleneckMethod(type="bottleneck", bottleneck_size=8),
}
WHOLE = {
    "full": config.FullMethod(type="full"),
    "freeze": config.FreezeMethod(type="freeze", layers=1),
    "head": config.FreezeMethod(type="freeze", layers=0, extra_modules=["lm_head"]),
}
SAVED = ADAPTERS | FROM_BASE | BESIDE
EVERY = SAVED | WHOLE
ONE_OF_EACH = {name: SAVED[name] for name in ("lora", "whole-head", "adalora", "vera", "oft", "ia3", "pissa", *BESIDE)}
"""Enough where a test asks of the files or of the loop, and not of the mathematics."""


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods.keys())


def test_the_registry_holds_what_a_recipe_can_name():
    names = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(config.Method)[0])}

    assert names == set(families)
    assert all(families[name].name == name for name in families)


@every(ONE_OF_EACH | WHOLE)
def test_training_lowers_the_loss(method):
    losses = bases.train(bases.attach(method.type, method), method.type, steps=8)

    assert losses[-1] < losses[0]


@every(SAVED)
def test_what_is_attached_again_computes_what_was_trained(method, tmp_path):
    model = bases.attach_and_train(method.type, method)
    families[method.type].save(model, tmp_path)

    again = families[method.type].attach_saved(llama(), tmp_path)

    assert max_difference(logits(again, method.type), logits(llama())) > 0.05
    assert max_difference(logits(again, method.type), logits(model, method.type)) <= 1e-5
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training


@every(ADAPTERS | FROM_BASE)
def test_what_is_merged_computes_what_was_saved(method, tmp_path):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)
    family.save(model, tmp_path / "adapter")

    merged = family.merge(family.attach_saved(llama(), tmp_path / "adapter"))
    merged.save_pretrained(tmp_path / "merged")
    read = type(merged).from_pretrained(tmp_path / "merged")

    assert type(merged) is type(llama())
    assert max_difference(logits(merged), logits(model, method.type)) <= 1e-5
    assert max_difference(logits(read), logits(model, method.type)) <= 1e-5
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert merged.state_dict().keys() == llama().state_dict().keys()


@every(ADAPTERS | FROM_BASE)
def test_a_live_adapter_merges_without_being_saved(method):
    model = bases.attach_and_train(method.type, method)
    before = logits(model, method.type)

    assert max_difference(logits(families[method.type].merge(model)), before) <= 1e-5


@every(BESIDE)
def test_what_cannot_be_merged_says_so(method):
    family = families[method.type]

    assert not family.mergeable
    with pytest.raises(RecipeError, match=f"method {method.type} cannot be folded into the base"):
        family.merge(bases.attach(method.type, method))


@every(ADAPTERS | BESIDE)
def test_the_base_is_untouched_by_training_and_saving(method, tmp_path):
    model = llama()
    before = bases.copy_weights(model)
    kept = dict(model.state_dict(keep_vars=True))

    adapted = families[method.type].attach(model, method, total_steps=2)
    bases.train(adapted, method.type, steps=2)
    families[method.type].save(adapted, tmp_path)

    assert all(torch.equal(kept[name], before[name]) for name in before)


@every(ADAPTERS | BESIDE)
def test_switched_off_it_is_the_base(method):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)

    assert family.disabling_restores_base(method)
    with family.disable_adapter(model):
        off = logits(model, method.type)
    assert max_difference(off, logits(llama())) <= 1e-6
    assert max_difference(logits(model, method.type), off) > 0.05


@every(FROM_BASE)
def test_switched_off_it_is_not_the_base_and_says_so(method):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)

    with family.disable_adapter(model):
        assert max_difference(logits(model, method.type), logits(llama())) > 0.05
    assert not family.disabling_restores_base(method)


@every(ONE_OF_EACH | {name: WHOLE[name] for name in ("freeze", "head")})
def test_what_is_trained_beside_16_bits_is_held_in_float32(method):
    def half():
        return llama(dtype=torch.bfloat16)

    model = bases.attach(method.type, method, half)
    losses = bases.train(model, method.type, steps=3)

    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(loss == loss for loss in losses)
    assert losses[-1] < losses[0]
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16} or method.type == "adalora"


@every(ADAPTERS | BESIDE)
def test_beside_16_bits_what_is_attached_again_computes_what_was_trained(method, tmp_path):
    def half():
        return llama(dtype=torch.bfloat16)

    model = bases.attach_and_train(method.type, method, half)
    families[method.type].save(model, tmp_path)

    again = families[method.type].attach_saved(half(), tmp_path)

    rounding = 0.1 if method.type == "adalora" else 0.0  # ranks that were given up are gone, and sums differ in order
    assert max_difference(logits(again, method.type), logits(model, method.type)) <= rounding
    held = {name: p.dtype for name, p in model.named_parameters()}
    assert all(held[name] == p.dtype for name, p in again.named_parameters())


@every(ONE_OF_EACH)
def test_saved_files_name_no_machine_and_are_the_same_each_time(method, tmp_path):
    model = bases.attach_and_train(method.type, method)
    model_of = getattr(model, "get_base_model", lambda: model)()
    model_of.name_or_path = "/home/someone/models/tiny"

    families[method.type].save(model, tmp_path / "a", base_name="tiny")
    families[method.type].save(model, tmp_path / "b", base_name="tiny")

    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert b"/home/" not in (tmp_path / "a" / name).read_bytes()
    assert b'"base_model_name_or_path": "tiny"' in next((tmp_path / "a").glob("*.json")).read_bytes()


@every(ONE_OF_EACH)
def test_an_adapter_tells_what_made_it(method, tmp_path):
    families[method.type].save(bases.attach(method.type, method), tmp_path)

    assert adapter_method(tmp_path) == method.type


@every(ONE_OF_EACH)
def test_an_adapter_for_another_base_is_refused_by_its_shapes(method, tmp_path):
    families[method.type].save(bases.attach_and_train(method.type, method), tmp_path)
    other = bases.on_meta(hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_key_value_heads=1)

    check_fits(bases.on_meta(), tmp_path)
    with pytest.raises(RecipeError, match="load.adapters: .*(made for another base|does not fit)"):
        check_fits(other, tmp_path)
    with pytest.raises(RecipeError, match="load.adapters: .*(made for another base|does not fit)"):
        families[method.type].attach_saved(llama(hidden_size=64, intermediate_size=32, num_key_value_heads=1), tmp_path)


CONTINUED = {name: ADAPTERS[name] for name in ("lora", "dora", "whole-head", "adalora", "vera", "oft", "ia3")} | {
    "prefix": BESIDE["prefix"],
    "prompt": BESIDE["prompt"],
    "bottleneck": BESIDE["bottleneck"],
}


@every(CONTINUED)
def test_training_goes_on_where_an_adapter_stopped(method, tmp_path):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)
    family.save(model, tmp_path / "a")

    family.check_continuation(tmp_path / "a", method, bases.on_meta())
    again = family.attach_saved(llama(), tmp_path / "a", trainable=True)
    assert max_difference(logits(again, method.type), logits(model, method.type)) <= 1e-5
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == names
    losses = bases.train(again, method.type, steps=8)
    family.save(again, tmp_path / "b")

    assert losses[-1] < losses[0]
    assert (
        max_difference(logits(family.attach_saved(llama(), tmp_path / "b"), method.type), logits(again, method.type))
        <= 1e-5
    )


@every(ONE_OF_EACH)
def test_another_method_cannot_go_on_with_an_adapter(method, tmp_path):
    families[method.type].save(bases.attach(method.type, method), tmp_path)
    other = EVERY["ia3" if method.type != "ia3" else "lora"]

    with pytest.raises(RecipeError, match=f"says '{other.type}', and the adapter .* was made by '{method.type}'"):
        families[other.type].check_continuation(tmp_path, other)


TRAINED = {
    "lora": {"lora_A", "lora_B"},
    "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
    "whole-head": {"lora_A", "lora_B", "modules_to_save"},
    "pissa": {"lora_A", "lora_B"},
    "adalora": {"lora_A", "lora_B", "lora_E"},
    "vera": {"vera_lambda_b", "vera_lambda_d"},
    "oft": {"oft_R"},
    "ia3": {"ia3_l"},
    "prefix": {"prompt_encoder"},
    "prompt": {"prompt_encoder"},
    "p_tuning": {"prompt_encoder"},
    "bottleneck": {"bottleneck"},
}


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_adapter_is_trained(name):
    model = bases.attach(SAVED[name].type, SAVED[name])
    trained = [parameter for parameter, p in model.named_parameters() if p.requires_grad]

    kinds = {kind for kind in TRAINED[name] for parameter in trained if kind in parameter.split(".")}
    assert kinds == TRAINED[name]
    assert all(TRAINED[name] & set(parameter.split(".")) for parameter in trained)


@every(ONE_OF_EACH | WHOLE)
def test_every_trained_parameter_gets_a_gradient(method):
    model = bases.attach(method.type, method)
    model.train()

    rows = families[method.type].logits(model, {"input_ids": bases.IDS}, torch.arange(11))
    rows.square().sum().backward()

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


RECOMPUTED = {
    name: method for name, method in ONE_OF_EACH.items() if families[method.type].supports_gradient_checkpointing
}


@pytest.mark.parametrize(
    ("method", "reentrant"),
    [*((method, False) for method in RECOMPUTED.values()), *((EVERY[name], True) for name in ("lora", "bottleneck"))],
    ids=[*RECOMPUTED, "lora-reentrant", "bottleneck-reentrant"],
)
def test_gradients_are_the_same_under_checkpointing(method, reentrant):
    def gradients(checkpointing):
        torch.manual_seed(1)
        model = llama()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        adapted = families[method.type].attach(model, method, total_steps=6).train()
        rows = families[method.type].logits(adapted, {"input_ids": bases.IDS}, torch.arange(11))
        rows.square().mean().backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)

    assert plain.keys() == recomputed.keys()
    assert all(max_difference(plain[name], recomputed[name]) <= 1e-5 for name in plain)


@every(ONE_OF_EACH)
def test_generation_takes_the_most_likely_token_each_time(method):
    model = bases.attach_and_train(method.type, method)
    ids = bases.IDS
    for _ in range(4):
        ids = torch.cat([ids, logits(model, method.type, ids)[-1:].argmax(-1)[None]], dim=1)

    made = model.generate(
        input_ids=bases.IDS,
        attention_mask=torch.ones_like(bases.IDS),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )

    assert torch.equal(made, ids)


@every({name: EVERY[name] for name in ("ia3", "vera", "oft", "prompt", "prefix", "p_tuning", "bottleneck", "freeze")})
def test_a_method_that_leaves_new_rows_as_they_are_refuses_them(method):
    with pytest.raises(RecipeError, match=r"^load.new_tokens: "):
        families[method.type].check(bases.on_meta(), method, new_ids=bases.NEW_IDS)


@every(ONE_OF_EACH | WHOLE)
def test_checking_needs_no_weights(method):
    families[method.type].check(bases.on_meta(), method, total_steps=6)


def test_a_family_by_itself_promises_nothing():
    family = MethodFamily()

    for call in (family.attach, family.save, family.check_fits, family.check_continuation, family.attach_saved):
        with pytest.raises(NotImplementedError):
            call(None, None)
