"""Value head: values, gradients, adapters, quantization, saving."""

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


def test_initial_values_are_zero(model):
    head = value_head.build_value_head(model)

    assert torch.equal(value_head.compute_values(model, head, input_ids=IDS), torch.zeros(2, 10))


def test_the_initial_gradient_is_not_zero(model):
    head = value_head.build_value_head(model)

    (value_head.compute_values(model, head, input_ids=IDS) - 1).square().mean().backward()

    assert head.summary.weight.grad.abs().max() > 0
    assert head.summary.bias.grad.abs().max() > 0


def test_small_initial_weights_distinguish_texts(model):
    torch.manual_seed(0)
    head = value_head.build_value_head(model, std=0.02)

    values = value_head.compute_values(model, head, input_ids=IDS)

    assert values.unique().numel() == values.numel()


def test_values_are_a_linear_map_of_the_last_hidden_state(model):
    head = value_head.build_value_head(model, std=1.0)
    hidden = model(IDS, output_hidden_states=True).hidden_states[-1]

    values = value_head.compute_values(model, head, input_ids=IDS)

    torch.testing.assert_close(values, head.summary(hidden)[..., 0])


def test_a_value_does_not_depend_on_later_tokens(model):
    head = value_head.build_value_head(model, std=1.0)
    other = IDS.clone()
    other[:, 5:] += 1

    values, changed = (value_head.compute_values(model, head, input_ids=ids) for ids in (IDS, other))

    torch.testing.assert_close(values[:, :5], changed[:, :5])
    assert (values[:, 5:] != changed[:, 5:]).all()


def test_logits_come_from_the_same_pass(model):
    head = value_head.build_value_head(model, std=1.0)

    values, logits = value_head.compute_values_and_logits(model, head, input_ids=IDS)

    torch.testing.assert_close(logits, model(IDS).logits)
    torch.testing.assert_close(values, value_head.compute_values(model, head, input_ids=IDS))


def test_no_hook_remains_on_the_model(model):
    value_head.compute_values(model, value_head.build_value_head(model), input_ids=IDS)

    assert not model.model._forward_hooks


@pytest.mark.parametrize("config", ADAPTERS, ids=["lora", "prefix", "prompt"])
def test_values_pass_gradients_to_an_adapter(model, config):
    adapted = get_peft_model(model, config)
    head = value_head.build_value_head(adapted, std=1.0)

    values = value_head.compute_values(adapted, head, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    values.sum().backward()

    assert values.shape == IDS.shape
    assert all(
        parameter.grad is not None
        for name, parameter in adapted.named_parameters()
        if "lora_B" in name or "prompt" in name
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_values_of_a_bfloat16_base_are_float32(tiny_model, autocast):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    head = value_head.build_value_head(model, std=1.0)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = value_head.compute_values(model, head, input_ids=IDS)

    assert values.dtype == torch.float32
    assert (values != values.bfloat16().float()).any(), "computed in float32, not only converted"


def test_values_of_a_quantized_base_are_finite(tiny_model):
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantization)

    assert value_head.compute_values(model, value_head.build_value_head(model, std=1.0), input_ids=IDS).isfinite().all()


def test_architectures_with_another_name_for_the_width_are_supported():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()

    assert value_head.compute_values(model, value_head.build_value_head(model), input_ids=IDS).shape == IDS.shape


def test_dropout_is_applied_only_in_training_mode(model):
    head = value_head.build_value_head(model, dropout=0.5, std=1.0)

    first, second = (value_head.compute_values(model, head.train(), input_ids=IDS) for _ in range(2))
    third, fourth = (value_head.compute_values(model, head.eval(), input_ids=IDS) for _ in range(2))

    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_a_saved_head_gives_the_same_values(model, tmp_path):
    head = value_head.build_value_head(model, std=1.0)
    value_head.save_value_head(head, tmp_path)

    loaded = value_head.load_value_head(tmp_path)

    assert torch.equal(
        value_head.compute_values(model, loaded, input_ids=IDS), value_head.compute_values(model, head, input_ids=IDS)
    )


def test_a_folder_without_a_head_is_rejected(tmp_path):
    with pytest.raises(SourceError, match=r"has no value head \(value_head.safetensors\)"):
        value_head.load_value_head(tmp_path)
