"""FLOPs per token, throughput and MFU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tuneline.model.load import load_model
from tuneline.train.monitoring import mfu


def test_full_training_costs_six_operations_per_weight(tiny_model):
    model = load_model(tiny_model)

    assert mfu.flops_per_token(model) == 6 * model.num_parameters()


def test_lora_costs_four_operations_per_weight_and_two_per_adapter_weight(tiny_model):
    base = load_model(tiny_model)
    frozen = base.num_parameters()
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    adapter = sum(part.numel() for part in model.parameters() if part.requires_grad)

    assert mfu.flops_per_token(model) == 4 * (frozen + adapter) + 2 * adapter


def test_an_untied_embedding_has_no_flops():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)

    assert mfu.flops_per_token(model) == 6 * (model.num_parameters() - 50 * 8)


def test_phases_measure_their_time():
    phase = mfu.PhaseTimer()

    with phase("load"):
        pass

    assert set(phase.seconds) == {"load_seconds"}
    assert phase.seconds["load_seconds"] >= 0


def test_twice_the_time_halves_the_mfu(tiny_model, monkeypatch):
    monkeypatch.setattr(mfu, "measure_peak_flops", lambda dtype, device: 1e9)
    model = load_model(tiny_model)

    fast, slow = (mfu.throughput_metrics(model, 100, seconds, torch.float32, "cpu") for seconds in (1.0, 2.0))

    assert fast["flops"] == slow["flops"] == 600 * model.num_parameters()
    assert fast["mfu"] == pytest.approx(2 * slow["mfu"])


def test_the_measured_peak_rate_is_plausible():
    assert mfu.measure_peak_flops(torch.float32, "cpu") > 1e8
