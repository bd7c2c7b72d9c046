"""Levers change no number, step aside where they cannot work, and are switched off where they are wrong."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tuneline.config.train import LeversConfig
from tuneline.data.schema import IGNORE_INDEX
from tuneline.model.load import load_model
from tuneline.model.methods import families
from tuneline.train import trainer
from tuneline.train.collate import collate
from tuneline.train.levers import fused, head
from tuneline.train.levers.apply import apply

LORA = families["lora"]


def row(trained_from=3):
    ids = [(7 * i) % 300 + 3 for i in range(40)]
    labels = [token if i % 20 >= trained_from else IGNORE_INDEX for i, token in enumerate(ids)]
    return collate([{"input_ids": ids, "labels": labels, "lengths": [20, 20]}])


def adapted(folder, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = load_model(folder, dtype=dtype, attention="segment")
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **options))
    for name, part in model.named_parameters():
        if part.requires_grad:
            part.data = part.data.float()
        if "lora_B" in name:
            part.data.normal_(0, 0.05)
    return model.train()


def measured(model, loss):
    losses, _ = loss()
    trained = [part for part in model.parameters() if part.requires_grad]
    mean = losses.mean()
    return float(mean.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(mean, trained)])


def switched_on(model, family=LORA, **config):
    return apply(family, model, LeversConfig(keep_memory=False, **config), row(), None)


@pytest.mark.parametrize("chunk", [1, 7, 384])
@pytest.mark.parametrize("names", [("head_loss",), ("fused_lora",), ("head_loss", "fused_lora")], ids=str)
def test_loss_and_gradients_are_those_of_the_plain_model(tiny_model, monkeypatch, names, chunk):
    monkeypatch.setattr(head, "CHUNK", chunk)
    model = adapted(tiny_model)
    plain, gradients = measured(model, lambda: trainer.token_losses(LORA, model, row()))

    levers = switched_on(model, **{name: name in names for name in ("head_loss", "fused_lora")})
    fast, others = measured(model, lambda: levers.token_losses(row()))

    assert {name for name in names if levers.decisions[f"levers.{name}"].startswith("on, ")} == set(names)
    assert fast == pytest.approx(plain, rel=1e-6)
    assert float((gradients - others).norm() / gradients.norm()) < 1e-5


def test_the_loss_is_transformers_own_on_each_example_alone(tiny_model):
    model = adapted(tiny_model)
    levers = switched_on(model)
    packed = row()

    total, count = 0.0, 0
    for start in (0, 20):
        ids, labels = (packed[name][:, start : start + 20] for name in ("input_ids", "labels"))
        trained = int((labels[0, 1:] != IGNORE_INDEX).sum())
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        total, count = total + float(loss.detach()) * trained, count + trained

    ours, where = levers.token_losses(packed)
    assert len(ours) == len(where) == count
    assert float(ours.detach().sum()) == pytest.approx(total, rel=1e-5)


def test_what_was_checked_is_left_as_it_was(tiny_model):
    model = adapted(tiny_model)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data.zero_()
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    switched_on(model)

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], part) for name, part in model.named_parameters())
    assert all(part.grad is None for part in model.parameters())


def test_removed_levers_leave_a_plain_model(tiny_model):
    levers = switched_on(adapted(tiny_model))
    layer = levers.fused_layers[0]
    assert "forward" in vars(layer)

    levers.remove()

    assert "forward" not in vars(layer)
    assert not levers.head_loss


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_layers_that_are_more_than_plain_lora_are_left_to_peft(tiny_model, options):
    levers = switched_on(adapted(tiny_model, **options))

    assert "no layer has a plain LoRA" in levers.decisions["levers.fused_lora"]
    assert levers.decisions["levers.head_loss"].startswith("on, ")


def test_the_base_answers_while_adapters_are_off(tiny_model):
    model = adapted(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert switched_on(model).fused_layers
    ids = torch.arange(3, 23)[None]

    with model.disable_adapter(), torch.no_grad():
        assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-5)


def test_a_trained_head_steps_aside(tiny_model):
    levers = switched_on(load_model(tiny_model, attention="segment").train(), families["full"])

    assert levers.decisions["levers.head_loss"] == "stepped aside: the head is trained"


def test_a_method_with_virtual_tokens_keeps_its_own_logits(tiny_model):
    assert head.why_not(families["prompt"], adapted(tiny_model)) == "method prompt makes its logits itself"


@pytest.mark.parametrize("name", head.SCALED)
def test_a_model_that_changes_its_logits_keeps_its_own_loss(tiny_model, name):
    model = adapted(tiny_model)
    setattr(model.get_base_model().config, name, 0.5)

    assert name in head.why_not(LORA, model)


def test_what_computes_something_else_is_switched_off(tiny_model, monkeypatch):
    plain = fused._FusedLora.apply

    def wrong(x, weight, bias, a, b, scaling):
        return plain(x, weight, bias, a, b, 1.5 * scaling)

    monkeypatch.setattr(fused, "_FusedLora", type("Wrong", (), {"apply": staticmethod(wrong)}))
    levers = switched_on(adapted(tiny_model))

    assert levers.decisions["levers.fused_lora"].startswith("switched off: loss or gradients differ")
    assert not levers.fused_layers
    assert levers.head_loss


def test_a_base_in_16_bits_beside_an_adapter_in_32_trains(tiny_model):
    model = adapted(tiny_model, torch.bfloat16)
    levers = apply(LORA, model, LeversConfig(keep_memory=False), row(), torch.bfloat16)

    assert levers.decisions["levers.fused_lora"].startswith("on, ")
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = levers.token_losses(row())
    losses.sum().backward()
    assert all(part.grad.dtype == torch.float32 for part in model.parameters() if part.requires_grad)


def test_fused_layers_step_aside_where_products_are_kept(tiny_model):
    model = adapted(tiny_model)

    levers = apply(LORA, model, LeversConfig(keep_memory=False), row(), None, recomputes_parts=True)

    assert "stepped aside: load.gradient_checkpointing: selective" in levers.decisions["levers.fused_lora"]
    assert not levers.fused_layers


def test_off_means_off(tiny_model):
    levers = switched_on(adapted(tiny_model), head_loss=False, fused_lora=False)

    assert set(levers.decisions.values()) == {"off, as the recipe says"}
    assert not levers.head_loss
    assert not levers.fused_layers
