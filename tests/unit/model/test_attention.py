"""Packed examples are blind to each other: logits, loss and gradients equal those of each alone."""

import pytest
import torch

from tuneline.errors import ProofError, RecipeError
from tuneline.model import attention
from tuneline.model.load import load_model

LENGTHS = [5, 1, 9]


@pytest.mark.parametrize("kind", ["segment", "sdpa"])
def test_packed_logits_and_gradients_equal_those_of_each_alone(tiny_model, kind):
    model = load_model(tiny_model, attention=kind)
    ids = torch.randint(3, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))

    alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids.split(LENGTHS)])
    alone.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    packed = model(input_ids=ids[None], **attention.packed_inputs(LENGTHS)).logits[0]
    packed.square().sum().backward()

    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_isolation_is_measured(tiny_model):
    assert attention.check_isolation(load_model(tiny_model, attention="segment")) < 1e-4


def test_isolation_is_measured_on_the_examples_themselves(tiny_model):
    model = load_model(tiny_model, attention="segment")

    assert attention.check_isolation(model, [[[3, 4, 5], [6, 7]], [[8], [9, 10, 11]]]) < 1e-4


def test_flash_attention_without_its_package_is_refused(tiny_model):
    with pytest.raises(RecipeError, match="needs a CUDA device and the package flash-attn"):
        load_model(tiny_model, attention="flash_attention_2")


def test_a_leak_is_refused(tiny_model, monkeypatch):
    model = load_model(tiny_model, attention="segment")
    whole = {"position_ids": torch.arange(16)[None], "use_cache": False}
    monkeypatch.setattr(attention, "packed_inputs", lambda lengths, device: whole)

    with pytest.raises(ProofError, match=r"see each other.*tokenize.packing: false"):
        attention.check_isolation(model)


def test_a_padding_mask_is_refused(tiny_model):
    q = torch.zeros(1, 4, 3, 8)

    with pytest.raises(ProofError, match="Set train.attention: sdpa"):
        attention.segment_attention(torch.nn.Module(), q, q, q, attention_mask=torch.ones(1, 1, 3, 3))
