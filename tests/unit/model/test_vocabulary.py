"""Embedding rows for new tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTNeoXConfig, LlamaConfig, PhiConfig

from tuneline.errors import RecipeError
from tuneline.model import vocabulary

OLD, WIDTH = 300, 64


def build(*, rows=OLD, tied=True, config=LlamaConfig, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model_config = config(vocab_size=rows, tie_word_embeddings=tied, max_position_embeddings=64, **sizes, **changes)
    model = AutoModelForCausalLM.from_config(model_config)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    return model


def inputs(model):
    return model.get_input_embeddings().weight.detach()


def outputs(model):
    return model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_plus_noise(tied):
    model = build(tied=tied)
    means = [weights[:OLD].mean(0) for weights in (inputs(model).clone(), outputs(model).clone())]
    ids = tuple(range(OLD, OLD + 200))

    assert vocabulary.add_embedding_rows(model, ids, OLD) == ids

    for weights, mean in zip((inputs(model), outputs(model)), means, strict=True):
        noise = weights[list(ids)] - mean
        assert noise.std() == pytest.approx(WIDTH**-0.5, rel=0.05)
        assert noise.mean(0).abs().max() < 5 * WIDTH**-0.5 / 200**0.5


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_do_not_change(tied):
    model = build(tied=tied)
    before = inputs(model).clone(), outputs(model).clone()

    vocabulary.add_embedding_rows(model, [OLD, OLD + 1], OLD)

    assert torch.equal(inputs(model)[:OLD], before[0])
    assert torch.equal(outputs(model)[:OLD], before[1])


def test_new_rows_differ_from_each_other():
    model = build(tied=False)

    vocabulary.add_embedding_rows(model, range(OLD, OLD + 10), OLD)

    for weights in (inputs(model), outputs(model)):
        distances = torch.cdist(weights[OLD : OLD + 10], weights[OLD : OLD + 10])
        assert distances[~torch.eye(10, dtype=bool)].min() > 0.5
    assert not torch.equal(inputs(model)[OLD:], outputs(model)[OLD:])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tied):
    model = build(tied=tied)

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_the_vocabulary_is_padded_and_the_config_is_updated():
    model = build()
    mean = inputs(model).mean(0)

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert inputs(model).shape[0] == model.config.vocab_size == 320
    assert model(torch.tensor([[OLD]])).logits.shape[-1] == 320
    torch.testing.assert_close(inputs(model)[OLD + 1 :], mean.expand(19, -1))


def test_new_tokens_can_use_padding_rows():
    model = build(rows=OLD + 20, tied=False)
    with torch.no_grad():
        for weights in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weights[OLD:] = 100.0

    vocabulary.add_embedding_rows(model, [OLD, OLD + 1], OLD)

    for weights in (inputs(model), outputs(model)):
        assert weights.shape[0] == OLD + 20
        assert weights[OLD : OLD + 2].abs().max() < 2, "initialized from old tokens, not from padding"
        assert (weights[OLD + 2 :] == 100.0).all(), "unused padding does not change"


def test_rows_are_reproducible_and_do_not_change_the_random_state():
    first, second = build(tied=False), build(tied=False)
    torch.manual_seed(7)
    vocabulary.add_embedding_rows(first, [OLD], OLD)
    next_random = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == next_random

    vocabulary.add_embedding_rows(second, [OLD], OLD)

    assert torch.equal(inputs(first), inputs(second))
    assert torch.equal(outputs(first), outputs(second))


def test_another_seed_gives_other_rows():
    first, second = build(), build()

    vocabulary.add_embedding_rows(first, [OLD], OLD)
    vocabulary.add_embedding_rows(second, [OLD], OLD, seed=1)

    assert not torch.equal(inputs(first)[OLD], inputs(second)[OLD])


def test_a_bias_of_the_head_gets_the_mean():
    model = build(config=PhiConfig, tied=False)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(OLD))

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert model.lm_head.bias[OLD].item() == pytest.approx((OLD - 1) / 2)
    assert torch.equal(model.lm_head.bias[:OLD].detach(), torch.arange(float(OLD)))


def test_a_head_with_another_name_is_extended():
    model = build(config=GPTNeoXConfig, tied=False)

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert outputs(model).shape[0] == 320


def test_the_dtype_of_the_weights_does_not_change():
    model = build().to(torch.bfloat16)

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert inputs(model).dtype == torch.bfloat16
    assert inputs(model)[OLD].isfinite().all()


def test_embeddings_are_extended_on_the_meta_device():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=OLD, hidden_size=32, num_hidden_layers=1))

    vocabulary.add_embedding_rows(model, [OLD], OLD)

    assert inputs(model).shape == outputs(model).shape == (320, 32)
    assert inputs(model).is_meta


def test_no_new_tokens_change_nothing():
    model = build()

    assert vocabulary.add_embedding_rows(model, (), OLD) == ()
    assert inputs(model).shape[0] == OLD


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_gets_the_same_rows(tiny_model, bits):
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    full = AutoModelForCausalLM.from_pretrained(tiny_model)
    quantized = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantization, dtype=torch.float32)
    num_old = full.config.vocab_size

    for model in (full, quantized):
        vocabulary.add_embedding_rows(model, [num_old, num_old + 1], num_old)

    assert torch.equal(inputs(full), inputs(quantized))
    assert quantized.eval()(torch.tensor([[num_old]])).logits.isfinite().all()


def test_quantized_embeddings_are_rejected():
    model = build()
    model.get_input_embeddings().weight.requires_grad_(False)
    model.get_input_embeddings().weight.data = torch.ones(OLD, WIDTH, dtype=torch.int8)

    with pytest.raises(RecipeError, match=r"load.new_tokens: the embeddings of this model are quantized"):
        vocabulary.add_embedding_rows(model, [OLD], OLD)
