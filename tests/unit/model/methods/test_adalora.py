"""AdaLoRA: ranks fall as planned, the penalty is peft's own, and what is saved in between is exact."""

import json

import pytest
import torch

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import llama, logits, max_difference
from tuneline.config.sections.method import AdaloraMethod
from tuneline.errors import RecipeError
from tuneline.model.methods import families

ADALORA = families["adalora"]


def method(**changes):
    return AdaloraMethod(**{"type": "adalora", "init_r": 4, "target_r": 2} | changes)


def attached(steps, config=None):
    torch.manual_seed(1)
    return ADALORA.attach(llama(), config or method(), total_steps=steps)


def ranks(folder):
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    return [sum(kept) for kept in (pattern or {}).values()]


@pytest.mark.parametrize("tfinal", [0, 2])
def test_the_mean_rank_is_the_target_after_the_last_step(tfinal, tmp_path):
    model = attached(6, method(tfinal=tfinal))
    bases.train(model, "adalora", steps=6)

    ADALORA.save(model, tmp_path)

    assert len(ranks(tmp_path)) == 14
    assert sum(ranks(tmp_path)) == 2 * 14


@pytest.mark.parametrize("steps", [1, 3, 4, 5])
def test_what_is_saved_between_two_allocations_is_exact(steps, tmp_path):
    model = attached(8, method(tinit=1, deltaT=3))
    bases.train(model, "adalora", steps=steps)

    ADALORA.save(model, tmp_path)

    assert max_difference(logits(ADALORA.attach_saved(llama(), tmp_path)), logits(model)) <= 1e-5


def test_saving_leaves_the_plan_as_it_was(tmp_path):
    model = attached(8, method(deltaT=3))
    bases.train(model, "adalora", steps=4)
    before = model.peft_config["default"].rank_pattern

    ADALORA.save(model, tmp_path)

    assert model.peft_config["default"].rank_pattern is before


def test_the_penalty_is_what_peft_adds_where_it_sees_labels():
    model = attached(6)
    bases.train(model, "adalora", steps=2)

    with torch.no_grad():
        with_penalty = model(input_ids=bases.IDS, labels=bases.IDS).loss
        plain = model.get_base_model()(input_ids=bases.IDS, labels=bases.IDS).loss

    assert ADALORA.penalty(model).item() == pytest.approx((with_penalty - plain).item(), abs=1e-5)
    assert ADALORA.penalty(attached(6, method(orth_reg_weight=0))) is None


def test_the_penalty_pulls_the_factors_apart():
    def distance(config):
        model = attached(30, config)
        bases.train(model, "adalora", steps=30)
        return ADALORA.penalty(attached_like(model)).item()

    def attached_like(model):
        model.peft_config["default"].orth_reg_weight = 1.0
        return model

    assert distance(method(orth_reg_weight=5)) < distance(method(orth_reg_weight=0))


def test_a_plan_without_a_step_for_ranks_to_fall_is_refused():
    with pytest.raises(RecipeError, match="method.tinit: 4 .* 2 .* none of the 6 steps"):
        attached(6, method(tinit=4, tfinal=2))
    with pytest.raises(RecipeError, match="method.type: adalora plans its ranks by the number of steps"):
        attached(0)
    with pytest.raises(RecipeError, match="method.init_r: rank 32"):
        ADALORA.check(bases.on_meta(), method(init_r=32))


def test_a_continued_adapter_keeps_its_ranks(tmp_path):
    model = attached(4)
    bases.train(model, "adalora", steps=4)
    ADALORA.save(model, tmp_path / "a")

    again = ADALORA.attach_saved(llama(), tmp_path / "a", trainable=True)
    losses = bases.train(again, "adalora", steps=6)
    ADALORA.save(again, tmp_path / "b")

    assert losses[-1] < losses[0]
    assert ranks(tmp_path / "a") == ranks(tmp_path / "b")


def test_a_layer_that_saw_no_token_does_not_stop_the_plan():
    model = attached(4)
    rows = ADALORA.logits(model, {"input_ids": bases.IDS}, torch.arange(4))
    rows.sum().backward()
    next(p for name, p in model.named_parameters() if "lora_E" in name).grad = None

    ADALORA.after_step(model, 0)


def test_rows_of_new_tokens_are_trained(tmp_path):
    model = bases.attach_and_train("adalora", method(), new_ids=bases.NEW_IDS)
    ADALORA.save(model, tmp_path)

    merged = ADALORA.merge(ADALORA.attach_saved(llama(), tmp_path))

    changed = (merged.lm_head.weight != llama().lm_head.weight).any(dim=1).nonzero()[:, 0]
    assert tuple(changed.tolist()) == bases.NEW_IDS
    assert max_difference(logits(merged), logits(model)) <= 1e-5
