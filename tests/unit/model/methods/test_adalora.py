"""AdaLoRA: rank schedule, orthogonality penalty, and checkpoints between allocations."""

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


def attach(steps, config=None):
    torch.manual_seed(1)
    return ADALORA.attach(llama(), config or method(), total_steps=steps)


def ranks(folder):
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    return [sum(mask) for mask in (pattern or {}).values()]


@pytest.mark.parametrize("tfinal", [0, 2])
def test_the_mean_rank_is_the_target_after_the_last_step(tfinal, tmp_path):
    model = attach(6, method(tfinal=tfinal))
    bases.train(model, "adalora", steps=6)

    ADALORA.save(model, tmp_path)

    assert len(ranks(tmp_path)) == 14
    assert sum(ranks(tmp_path)) == 2 * 14


@pytest.mark.parametrize("steps", [1, 3, 4, 5])
def test_a_checkpoint_between_two_allocations_is_exact(steps, tmp_path):
    model = attach(8, method(tinit=1, deltaT=3))
    bases.train(model, "adalora", steps=steps)

    ADALORA.save(model, tmp_path)

    assert max_difference(logits(ADALORA.attach_saved(llama(), tmp_path)), logits(model)) <= 1e-5


def test_saving_does_not_change_the_rank_pattern(tmp_path):
    model = attach(8, method(deltaT=3))
    bases.train(model, "adalora", steps=4)
    before = model.peft_config["default"].rank_pattern

    ADALORA.save(model, tmp_path)

    assert model.peft_config["default"].rank_pattern is before


def test_the_penalty_equals_the_one_that_peft_adds_to_the_loss():
    model = attach(6)
    bases.train(model, "adalora", steps=2)

    with torch.no_grad():
        with_penalty = model(input_ids=bases.IDS, labels=bases.IDS).loss
        plain = model.get_base_model()(input_ids=bases.IDS, labels=bases.IDS).loss

    assert ADALORA.penalty(model).item() == pytest.approx((with_penalty - plain).item(), abs=1e-5)
    assert ADALORA.penalty(attach(6, method(orth_reg_weight=0))) is None


def test_the_penalty_makes_factors_more_orthogonal():
    def distance(config):
        model = attach(30, config)
        bases.train(model, "adalora", steps=30)
        model.peft_config["default"].orth_reg_weight = 1.0
        return ADALORA.penalty(model).item()

    assert distance(method(orth_reg_weight=5)) < distance(method(orth_reg_weight=0))


def test_a_schedule_without_a_step_for_reducing_ranks_is_rejected():
    with pytest.raises(RecipeError, match="method.tinit: 4 .* 2 .* none of the 6 training steps"):
        attach(6, method(tinit=4, tfinal=2))
    with pytest.raises(RecipeError, match="method.type: adalora needs the number of training steps"):
        attach(0)
    with pytest.raises(RecipeError, match="method.init_r: rank 32"):
        ADALORA.check(bases.on_meta(), method(init_r=32))


def test_a_continued_adapter_keeps_its_ranks(tmp_path):
    model = attach(4)
    bases.train(model, "adalora", steps=4)
    ADALORA.save(model, tmp_path / "a")

    loaded = ADALORA.attach_saved(llama(), tmp_path / "a", trainable=True)
    losses = bases.train(loaded, "adalora", steps=6)
    ADALORA.save(loaded, tmp_path / "b")

    assert losses[-1] < losses[0]
    assert ranks(tmp_path / "a") == ranks(tmp_path / "b")


def test_a_layer_without_a_gradient_gets_a_zero_gradient():
    model = attach(4)
    rows = ADALORA.logits(model, {"input_ids": bases.IDS}, torch.arange(4))
    rows.sum().backward()
    idle = next(p for name, p in model.named_parameters() if "lora_E" in name)
    idle.grad = None

    ADALORA.after_step(model, 0)

    assert torch.equal(idle.grad, torch.zeros_like(idle))


def test_rows_of_new_tokens_are_trained(tmp_path):
    model = bases.attach_and_train("adalora", method(), new_ids=bases.NEW_IDS)
    ADALORA.save(model, tmp_path)

    merged = ADALORA.merge(ADALORA.attach_saved(llama(), tmp_path))

    changed = (merged.lm_head.weight != llama().lm_head.weight).any(dim=1).nonzero()[:, 0]
    assert tuple(changed.tolist()) == bases.NEW_IDS
    assert max_difference(logits(merged), logits(model)) <= 1e-5
