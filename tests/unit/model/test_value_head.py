"""One number off each position."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tuneline.errors import SourceError
from tuneline.model import value_head

IDS = torch.arange(3, 23).view(2, 10)
ADAPTERS = [
    LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
]


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def test_it_expects_nothing_at_first(model):
    head = value_head.build_value_head(model)

    assert torch.equal(value_head.compute_values(model, head, input_ids=IDS), torch.zeros(2, 10))


def test_its_gradient_is_not_nothing(model):
    head = value_head.build_value_head(model)

    (value_head.compute_values(model, head, input_ids=IDS) - 1).square().mean().backward()

    assert head.summary.weight.grad.abs().max() > 0
    assert head.summary.bias.grad.abs().max() > 0


def test_a_small_start_tells_texts_apart(model):
    torch.manual_seed(0)
    head = value_head.build_value_head(model, std=0.02)

    found = value_head.compute_values(model, head, input_ids=IDS)

    assert found.unique().numel() == found.numel()


def test_values_are_read_off_the_last_hidden_state(model):
    head = value_head.build_value_head(model, std=1.0)
    hidden = model(IDS, output_hidden_states=True).hidden_states[-1]

    found = value_head.compute_values(model, head, input_ids=IDS)

    torch.testing.assert_close(found, head.summary(hidden)[..., 0])


def test_a_value_knows_nothing_of_what_follows(model):
    head = value_head.build_value_head(model, std=1.0)
    other = IDS.clone()
    other[:, 5:] += 1

    found, changed = (value_head.compute_values(model, head, input_ids=ids) for ids in (IDS, other))

    torch.testing.assert_close(found[:, :5], changed[:, :5])
    assert (found[:, 5:] != changed[:, 5:]).all()


def test_logits_come_from_the_same_pass(model):
    head = value_head.build_value_head(model, std=1.0)

    found, logits = value_head.compute_values_and_logits(model, head, input_ids=IDS)

    torch.testing.assert_close(logits, model(IDS).logits)
    torch.testing.assert_close(found, value_head.compute_values(model, head, input_ids=IDS))


def test_the_model_is_left_as_it_was(model):
    value_head.compute_values(model, value_head.build_value_head(model), input_ids=IDS)

    assert not model.model._forward_hooks


@pytest.mark.parametrize("config", ADAPTERS, ids=["lora", "prefix", "prompt"])
def test_it_works_on_an_adapter_and_trains_it(model, config):
    adapted = get_peft_model(model, config)
    head = value_head.build_value_head(adapted, std=1.0)

    found = value_head.compute_values(adapted, head, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    found.sum().backward()

    assert found.shape == IDS.shape
    assert all(
        each.grad is not None for name, each in adapted.named_parameters() if "lora_B" in name or "prompt" in name
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_values_of_a_bfloat16_base_are_in_float32(tiny_model, autocast):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    head = value_head.build_value_head(model, std=1.0)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = value_head.compute_values(model, head, input_ids=IDS)

    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any(), "computed in float32, not only turned into it"


def test_it_works_on_a_quantized_base(tiny_model):
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantization)

    assert value_head.compute_values(model, value_head.build_value_head(model, std=1.0), input_ids=IDS).isfinite().all()


def test_it_fits_architectures_that_name_their_width_otherwise():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()

    assert value_head.compute_values(model, value_head.build_value_head(model), input_ids=IDS).shape == IDS.shape


def test_dropout_is_for_training_only(model):
    head = value_head.build_value_head(model, dropout=0.5, std=1.0)

    first, second = (value_head.compute_values(model, head.train(), input_ids=IDS) for _ in range(2))
    third, fourth = (value_head.compute_values(model, head.eval(), input_ids=IDS) for _ in range(2))

    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_it_comes_back_as_it_was_saved(model, tmp_path):
    head = value_head.build_value_head(model, std=1.0)
    value_head.save_value_head(head, tmp_path)

    again = value_head.load_value_head(tmp_path)

    assert torch.equal(
        value_head.compute_values(model, again, input_ids=IDS), value_head.compute_values(model, head, input_ids=IDS)
    )


def test_a_folder_without_a_head_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"has no value head \(value_head.safetensors\)"):
        value_head.load_value_head(tmp_path)
