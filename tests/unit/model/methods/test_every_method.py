"""Properties of every method: save, load, merge, trained parameters, and gradient checkpointing."""

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
RESIDUAL = {
    "pissa": config.LoraMethod(**LORA, init_lora_weights="pissa"),
    "olora": config.LoraMethod(**LORA, init_lora_weights="olora"),
    "pissa-rslora": config.LoraMethod(**LORA, init_lora_weights="pissa", use_rslora=True),
    "olora-dora": config.LoraMethod(**LORA, init_lora_weights="olora", use_dora=True),
    "pissa-whole": config.LoraMethod(**LORA, init_lora_weights="pissa", modules_to_save=["norm"]),
}
UNMERGEABLE = {
    "prefix": config.PrefixMethod(type="prefix", num_virtual_tokens=5),
    "prefix-network": config.PrefixMethod(type="prefix", num_virtual_tokens=5, prefix_projection=True),
    "prompt": config.PromptMethod(type="prompt", num_virtual_tokens=5),
    "p_tuning": config.PTuningMethod(type="p_tuning", num_virtual_tokens=5, encoder_hidden_size=16),
    "bottleneck": config.BottleneckMethod(type="bottleneck", bottleneck_size=8),
}
FULL_MODEL = {
    "full": config.FullMethod(type="full"),
    "freeze": config.FreezeMethod(type="freeze", layers=1),
    "head": config.FreezeMethod(type="freeze", layers=0, extra_modules=["lm_head"]),
}
SAVED = ADAPTERS | RESIDUAL | UNMERGEABLE
EVERY = SAVED | FULL_MODEL
ONE_OF_EACH = {
    name: SAVED[name] for name in ("lora", "whole-head", "adalora", "vera", "oft", "ia3", "pissa", *UNMERGEABLE)
}
"""One variant per method, for tests of files and loops that do not depend on the variant."""


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods.keys())


def test_the_registry_contains_every_method_of_the_recipe():
    configs = get_args(get_args(config.Method)[0])
    names = {get_args(method_config.model_fields["type"].annotation)[0] for method_config in configs}

    assert names == set(families)
    assert all(families[name].name == name for name in families)


@every(ONE_OF_EACH | FULL_MODEL)
def test_training_lowers_the_loss(method):
    losses = bases.train(bases.attach(method.type, method), method.type, steps=8)

    assert losses[-1] < losses[0]


@every(SAVED)
def test_a_loaded_adapter_reproduces_the_trained_model(method, tmp_path):
    model = bases.attach_and_train(method.type, method)
    families[method.type].save(model, tmp_path)

    loaded = families[method.type].attach_saved(llama(), tmp_path)

    assert max_difference(logits(loaded, method.type), logits(llama())) > 0.05
    assert max_difference(logits(loaded, method.type), logits(model, method.type)) <= 1e-5
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


@every(ADAPTERS | RESIDUAL)
def test_a_merged_model_reproduces_the_adapter(method, tmp_path):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)
    family.save(model, tmp_path / "adapter")

    merged = family.merge(family.attach_saved(llama(), tmp_path / "adapter"))
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(merged).from_pretrained(tmp_path / "merged")

    assert type(merged) is type(llama())
    assert max_difference(logits(merged), logits(model, method.type)) <= 1e-5
    assert max_difference(logits(loaded), logits(model, method.type)) <= 1e-5
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert merged.state_dict().keys() == llama().state_dict().keys()


@every(ADAPTERS | RESIDUAL)
def test_an_adapter_in_memory_can_be_merged(method):
    model = bases.attach_and_train(method.type, method)
    before = logits(model, method.type)

    assert max_difference(logits(families[method.type].merge(model)), before) <= 1e-5


@every(UNMERGEABLE)
def test_merging_an_unmergeable_method_raises_an_error(method):
    family = families[method.type]

    assert not family.mergeable
    with pytest.raises(RecipeError, match=f"method {method.type} cannot be merged into the base"):
        family.merge(bases.attach(method.type, method))


@every(ADAPTERS | UNMERGEABLE)
def test_training_and_saving_do_not_change_the_base_weights(method, tmp_path):
    model = llama()
    before = bases.copy_weights(model)
    weights = dict(model.state_dict(keep_vars=True))

    adapted = families[method.type].attach(model, method, total_steps=2)
    bases.train(adapted, method.type, steps=2)
    families[method.type].save(adapted, tmp_path)

    assert all(torch.equal(weights[name], before[name]) for name in before)


@every(ADAPTERS | UNMERGEABLE)
def test_disabling_the_adapter_restores_the_base(method):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)

    assert family.disabling_restores_base(method)
    with family.disable_adapter(model):
        disabled = logits(model, method.type)
    assert max_difference(disabled, logits(llama())) <= 1e-6
    assert max_difference(logits(model, method.type), disabled) > 0.05


@every(RESIDUAL)
def test_disabling_a_residual_adapter_does_not_restore_the_base(method):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)

    with family.disable_adapter(model):
        assert max_difference(logits(model, method.type), logits(llama())) > 0.05
    assert not family.disabling_restores_base(method)


@every(ONE_OF_EACH | {name: FULL_MODEL[name] for name in ("freeze", "head")})
def test_trained_weights_of_a_16_bit_model_are_float32(method):
    def half():
        return llama(dtype=torch.bfloat16)

    model = bases.attach(method.type, method, half)
    losses = bases.train(model, method.type, steps=3)

    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(loss == loss for loss in losses)
    assert losses[-1] < losses[0]
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16} or method.type == "adalora"


@every(ADAPTERS | UNMERGEABLE)
def test_a_loaded_adapter_reproduces_a_trained_16_bit_model(method, tmp_path):
    def half():
        return llama(dtype=torch.bfloat16)

    model = bases.attach_and_train(method.type, method, half)
    families[method.type].save(model, tmp_path)

    loaded = families[method.type].attach_saved(half(), tmp_path)

    rounding = 0.1 if method.type == "adalora" else 0.0  # pruned ranks are not saved, so the order of sums differs
    assert max_difference(logits(loaded, method.type), logits(model, method.type)) <= rounding
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert all(dtypes[name] == p.dtype for name, p in loaded.named_parameters())


@every(ONE_OF_EACH)
def test_saved_files_are_reproducible_and_contain_no_local_paths(method, tmp_path):
    model = bases.attach_and_train(method.type, method)
    base_model = getattr(model, "get_base_model", lambda: model)()
    base_model.name_or_path = "/home/someone/models/tiny"

    families[method.type].save(model, tmp_path / "a", base_name="tiny")
    families[method.type].save(model, tmp_path / "b", base_name="tiny")

    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert b"/home/" not in (tmp_path / "a" / name).read_bytes()
    assert b'"base_model_name_or_path": "tiny"' in next((tmp_path / "a").glob("*.json")).read_bytes()


@every(ONE_OF_EACH)
def test_the_method_of_a_saved_adapter_is_detected(method, tmp_path):
    families[method.type].save(bases.attach(method.type, method), tmp_path)

    assert adapter_method(tmp_path) == method.type


@every(ONE_OF_EACH)
def test_an_adapter_of_another_base_is_rejected_by_its_shapes(method, tmp_path):
    families[method.type].save(bases.attach_and_train(method.type, method), tmp_path)
    other = bases.on_meta(hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_key_value_heads=1)

    check_fits(bases.on_meta(), tmp_path)
    with pytest.raises(RecipeError, match="load.adapters: .*(trained on a different base|does not fit)"):
        check_fits(other, tmp_path)
    with pytest.raises(RecipeError, match="load.adapters: .*(trained on a different base|does not fit)"):
        families[method.type].attach_saved(llama(hidden_size=64, intermediate_size=32, num_key_value_heads=1), tmp_path)


CONTINUED = {name: ADAPTERS[name] for name in ("lora", "dora", "whole-head", "adalora", "vera", "oft", "ia3")} | {
    "prefix": UNMERGEABLE["prefix"],
    "prompt": UNMERGEABLE["prompt"],
    "bottleneck": UNMERGEABLE["bottleneck"],
}


@every(CONTINUED)
def test_training_continues_from_a_saved_adapter(method, tmp_path):
    family = families[method.type]
    model = bases.attach_and_train(method.type, method)
    family.save(model, tmp_path / "a")

    family.check_continuation(tmp_path / "a", method, bases.on_meta())
    loaded = family.attach_saved(llama(), tmp_path / "a", trainable=True)
    assert max_difference(logits(loaded, method.type), logits(model, method.type)) <= 1e-5
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == names
    losses = bases.train(loaded, method.type, steps=8)
    family.save(loaded, tmp_path / "b")

    assert losses[-1] < losses[0]
    assert (
        max_difference(logits(family.attach_saved(llama(), tmp_path / "b"), method.type), logits(loaded, method.type))
        <= 1e-5
    )


@every(ONE_OF_EACH)
def test_an_adapter_cannot_be_continued_with_another_method(method, tmp_path):
    families[method.type].save(bases.attach(method.type, method), tmp_path)
    other = EVERY["ia3" if method.type != "ia3" else "lora"]

    with pytest.raises(RecipeError, match=f"says '{other.type}', but the adapter .* was trained with '{method.type}'"):
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

    parts = {part for part in TRAINED[name] for parameter in trained if part in parameter.split(".")}
    assert parts == TRAINED[name]
    assert all(TRAINED[name] & set(parameter.split(".")) for parameter in trained)


@every(ONE_OF_EACH | FULL_MODEL)
def test_every_trained_parameter_gets_a_gradient(method):
    model = bases.attach(method.type, method)
    model.train()

    rows = families[method.type].logits(model, {"input_ids": bases.IDS}, torch.arange(11))
    rows.square().sum().backward()

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


CHECKPOINTED = {
    name: method for name, method in ONE_OF_EACH.items() if families[method.type].supports_gradient_checkpointing
}


@pytest.mark.parametrize(
    ("method", "reentrant"),
    [*((method, False) for method in CHECKPOINTED.values()), *((EVERY[name], True) for name in ("lora", "bottleneck"))],
    ids=[*CHECKPOINTED, "lora-reentrant", "bottleneck-reentrant"],
)
def test_gradient_checkpointing_does_not_change_gradients(method, reentrant):
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
def test_greedy_generation_selects_the_most_likely_token(method):
    model = bases.attach_and_train(method.type, method)
    ids = bases.IDS
    for _ in range(4):
        ids = torch.cat([ids, logits(model, method.type, ids)[-1:].argmax(-1)[None]], dim=1)

    generated = model.generate(
        input_ids=bases.IDS,
        attention_mask=torch.ones_like(bases.IDS),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )

    assert torch.equal(generated, ids)


@every({name: EVERY[name] for name in ("ia3", "vera", "oft", "prompt", "prefix", "p_tuning", "bottleneck", "freeze")})
def test_a_method_that_cannot_train_new_rows_rejects_new_tokens(method):
    with pytest.raises(RecipeError, match=r"^load.new_tokens: "):
        families[method.type].check(bases.on_meta(), method, new_ids=bases.NEW_IDS)


@every(ONE_OF_EACH | FULL_MODEL)
def test_check_needs_no_weights(method):
    model = bases.on_meta()

    families[method.type].check(model, method, total_steps=6)

    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_base_class_is_abstract():
    family = MethodFamily()

    for call in (family.attach, family.save, family.check_fits, family.check_continuation, family.attach_saved):
        with pytest.raises(NotImplementedError):
            call(None, None)
