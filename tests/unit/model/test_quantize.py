"""Quantized weights: training, evaluation, merging and saving."""

import json
import logging
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tuneline.config.sections.load import Bnb4bit, Bnb8bit, TorchaoInt8
from tuneline.config.validation import quantization
from tuneline.errors import RecipeError
from tuneline.model import quantize


def fault(raises):
    return pytest.mark.xfail(strict=True, raises=raises, reason="docs/upstream.md")


needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")

KINDS = [
    pytest.param(Bnb4bit(type="bnb_4bit"), id="nf4_double"),
    pytest.param(Bnb4bit(type="bnb_4bit", bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False), id="fp4"),
    pytest.param(Bnb8bit(type="bnb_8bit"), id="int8"),
    pytest.param(TorchaoInt8(type="torchao_int8"), id="torchao", marks=needs_torchao),
]
IDS = torch.arange(3, 43)[None]
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def load(folder, quantization=None, dtype=torch.float32):
    options = {"quantization_config": quantize.build_quantization_config(quantization, dtype)} if quantization else {}
    return quantize.apply_workarounds(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options))


def with_adapter(model):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(model, steps=2):
    """Train a few steps; return the loss before each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@torch.no_grad()
def logits(model, *, training=False):
    return model.train(training)(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_on_quantized_weights(tiny_model, kind):
    model = load(tiny_model, kind)

    first, second, third = train(with_adapter(model), steps=3)

    assert quantize.is_quantized(model)
    assert first > second > third


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_has_gradients_after_an_evaluation(tiny_model, kind):
    model = with_adapter(load(tiny_model, kind))
    logits(model)

    model.train()(input_ids=IDS, labels=IDS).loss.backward()

    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 14
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_does_not_change_training(tiny_model, kind):
    reference, evaluated = (with_adapter(load(tiny_model, kind)) for _ in range(2))
    logits(evaluated)

    assert train(evaluated) == pytest.approx(train(reference), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_into_the_dequantized_weights(tiny_model, tmp_path, kind):
    trained = with_adapter(load(tiny_model, kind))
    train(trained)
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = logits(trained, training=True)  # in evaluation mode, 8-bit products also round their inputs

    base = quantize.dequantize(load(tiny_model, kind))
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    assert (logits(merged) - expected).abs().max() < 1e-4
    assert (logits(load(tmp_path / "merged")) - expected).abs().max() < 1e-4
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert not quantize.is_quantized(merged)
    assert quantize.quantization_kind(merged.config.to_dict()) is None


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_weights_are_plain_parameters(tiny_model, kind):
    model = load(tiny_model, kind)
    logits(model)  # the first pass moves 8-bit weights

    plain = quantize.dequantize(model)

    assert {type(parameter) for parameter in plain.parameters()} == {torch.nn.Parameter}
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in load(tiny_model).named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prequantized_model_is_dequantized(tiny_model, tmp_path, kind):
    load(tiny_model, kind).save_pretrained(tmp_path / "few_bits")
    config = json.loads((tmp_path / "few_bits" / "config.json").read_text())

    assert quantize.quantization_kind(config) == kind.type
    assert quantize.loading_options(config) == {}
    model = load(tmp_path / "few_bits")
    before = logits(model, training=True)
    quantize.dequantize(model).save_pretrained(tmp_path / "full")
    assert (logits(load(tmp_path / "full")) - before).abs().max() < 1e-4


def test_dequantizing_a_plain_model_returns_it_unchanged(tiny_model):
    model = load(tiny_model)

    assert quantize.dequantize(model) is model


def test_a_kind_that_cannot_be_dequantized_is_rejected(tiny_model):
    model = load(tiny_model)
    model.is_quantized = True
    model.config.quantization_config = {"quant_method": "quanto"}

    with pytest.raises(RecipeError, match=r"an adapter on quanto cannot be merged: .* drops the adapter"):
        quantize.dequantize(model)


def test_transposed_layers_stay_transposed(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", Bnb4bit(type="bnb_4bit"))
    before = logits(model)

    quantize.dequantize(model).save_pretrained(tmp_path / "full")

    assert (logits(load(tmp_path / "full")) - before).abs().max() < 1e-4


def test_repacking_of_4_bit_weights_is_disabled(tiny_model):
    model = load(tiny_model, Bnb4bit(type="bnb_4bit"))

    flags = [module.support_avx512bf16_for_cpu for module in model.modules() if type(module).__name__ == "Linear4bit"]

    assert flags == [False] * 14


def test_cast_messages_of_bitsandbytes_are_filtered(tiny_model, caplog):
    model = load(tiny_model, Bnb8bit(type="bnb_8bit"))

    with caplog.at_level(logging.WARNING):
        logits(model)

    assert "MatMul8bitLt" not in caplog.text


def test_only_norms_are_float32_after_preparation(tiny_model):
    model = quantize.prepare_for_training(load(tiny_model, Bnb4bit(type="bnb_4bit"), torch.bfloat16))

    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.dtype != torch.uint8}

    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {n for n in dtypes if "norm" in n}
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_prepared_base_computes_in_its_dtype_without_autocast(tiny_model):
    plain = load(tiny_model, Bnb4bit(type="bnb_4bit"), torch.bfloat16)
    before = logits(plain).float()
    input_dtypes = []
    plain.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: input_dtypes.append(inputs[0].dtype))

    after = logits(quantize.prepare_for_training(plain))

    assert input_dtypes == [torch.bfloat16]
    assert after.dtype == torch.bfloat16
    assert (after.float() - before).abs().max() < 0.05 * before.abs().max()


def test_gradients_pass_through_checkpointed_layers(tiny_model):
    model = with_adapter(quantize.prepare_for_training(load(tiny_model, Bnb4bit(type="bnb_4bit"))))
    model.gradient_checkpointing_enable({"use_reentrant": True})

    model.train()(input_ids=IDS, labels=IDS).loss.backward()

    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def write_fp8(folder):
    """Write a tiny model with FP8 blocks in the format of DeepSeek; return the full model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=False))
    model.save_pretrained(folder)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = weight
            continue
        blocks = weight.unfold(0, 32, 32).unfold(1, 32, 32)
        scale = blocks.abs().amax((2, 3)) / 448
        tensors[name] = (weight / scale.repeat_interleave(32, 0).repeat_interleave(32, 1)).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    quantization_config = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
    _rewrite(folder, tensors, quantization_config)
    return model


def write_mxfp4(folder):
    """Write a tiny mixture with MXFP4 experts in the format of gpt-oss; return the full model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **experts))
    model.save_pretrained(folder)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight
            continue
        blocks = weight.transpose(1, 2).unflatten(-1, (-1, 32))
        exponent = (blocks.abs().amax(-1) / 6).log2().ceil()
        codes = ((blocks / 2 ** exponent[..., None])[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
        tensors[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
        tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    _rewrite(folder, tensors, {"quant_method": "mxfp4"})
    return model


def _rewrite(folder, tensors, quantization_config):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config}))


def read(folder):
    """Load a model like `tuneline.model.load`."""
    config = json.loads((folder / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **quantize.loading_options(config))


@pytest.mark.parametrize("write", [write_fp8, write_mxfp4])
def test_a_model_dequantized_on_loading_is_saved_as_plain_weights(tmp_path, write):
    full = write(tmp_path / "few_bits")

    model = quantize.apply_workarounds(read(tmp_path / "few_bits"))
    model.save_pretrained(tmp_path / "full")

    assert not quantize.is_quantized(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < (logits(model) - logits(full)).abs().max() < 0.25 * logits(full).abs().max()
    assert torch.equal(logits(load(tmp_path / "full")), logits(model))


def test_an_unquantized_mixture_keeps_its_weight_conversions(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=4, num_local_experts=2)).save_pretrained(tmp_path)

    model = load(tmp_path)

    assert model._weight_conversions


@fault(AssertionError)
def test_transformers_saves_models_dequantized_on_loading_as_plain_weights(tmp_path):
    write_fp8(tmp_path / "few_bits")
    model = read(tmp_path / "few_bits")

    model.save_pretrained(tmp_path / "full")

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    assert (logits(reloaded) - logits(model)).abs().max() < 1e-4


@fault(NotImplementedError)
def test_transformers_saves_prequantized_4_bit_models_after_dequantization(tiny_model, tmp_path):
    load(tiny_model, Bnb4bit(type="bnb_4bit")).save_pretrained(tmp_path / "few_bits")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "few_bits", dtype=torch.float32).dequantize()

    model.save_pretrained(tmp_path / "full")


@fault(AssertionError)
def test_transformers_keeps_transposed_layers_when_dequantizing(tmp_path):
    sizes = {"vocab_size": 64, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)

    model = load(tmp_path, Bnb4bit(type="bnb_4bit")).dequantize()

    assert model.transformer.h[0].attn.c_attn.weight.shape == (64, 192)


@fault(NotImplementedError)
def test_transformers_has_hqq():
    from transformers.quantizers.quantizer_hqq import HqqHfQuantizer

    quantizer = object.__new__(HqqHfQuantizer)
    quantizer.quantization_config = SimpleNamespace(quant_method="hqq")

    quantizer.get_quantize_ops()


needs_avx512bf16 = pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes does not repack weights"
)


def gradient_after_an_evaluation(*, with_workarounds: bool):
    """Return the gradient of a 4-bit layer's input; the layer is wide, because narrow ones cannot be repacked."""
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    if with_workarounds:
        quantize.apply_workarounds(torch.nn.Sequential(layer))
    x = torch.randn(4, 256)
    with torch.no_grad():
        layer.eval()(x)
    x.requires_grad_(True)
    layer.train()(x).sum().backward()
    return x.grad


@fault(AssertionError)
@needs_avx512bf16
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
def test_bitsandbytes_has_gradients_after_an_evaluation():
    gradient = gradient_after_an_evaluation(with_workarounds=False)

    assert gradient is not None
    assert gradient.any()


@needs_avx512bf16
def test_layers_with_workarounds_have_gradients_after_an_evaluation():
    assert gradient_after_an_evaluation(with_workarounds=True).any()


@fault(AssertionError)
@pytest.mark.skipif(quantization.table()["quanto"].missing() != [], reason="optimum-quanto is not installed")
def test_merging_into_quanto_weights_keeps_the_adapter(tiny_model):
    from transformers import QuantoConfig

    quantization = QuantoConfig(weights="int8")
    model = with_adapter(AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantization))
    train(model, steps=4)
    before = logits(model)

    merged = model.merge_and_unload()

    assert (logits(merged) - before).abs().max() < 0.1 * before.abs().max()
