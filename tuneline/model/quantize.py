"""Quantized weights: quantize while loading, work around library bugs, and dequantize.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) trains an adapter on 4-bit weights. The adapter fits the quantized
weights, not the original ones, so it is merged into the dequantized weights. The table
`tuneline/config/validation/quantization.yaml` lists what each kind supports.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoQuantizationConfig

from tuneline.config.sections.load import Bnb4bit, Bnb8bit, Quantization
from tuneline.config.validation import quantization
from tuneline.config.validation.quantization import quantization_config, quantization_kind
from tuneline.errors import RecipeError
from tuneline.model.targets import bypassed_layers

__all__ = [
    "apply_workarounds",
    "build_quantization_config",
    "dequantize",
    "is_quantized",
    "loading_options",
    "prepare_for_training",
    "quantization_kind",
    "rounds_inputs",
]


def build_quantization_config(
    quantization: Quantization, compute_dtype: torch.dtype, model: nn.Module | None = None
) -> Any:
    """Return the `quantization_config` for `from_pretrained`.

    Args:
        quantization: Quantization section of the recipe.
        compute_dtype: Dtype to which 4-bit weights are dequantized for matrix products.
        model: Base model on the meta device; if given, bypassed layers (see `targets.bypassed_layers`) and the head
            are not quantized.
    """
    skip_modules = _unquantized_layers(model) if model is not None else None
    if isinstance(quantization, Bnb4bit):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skip_modules,
        )
    if isinstance(quantization, Bnb8bit):
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=quantization.llm_int8_threshold, llm_int8_skip_modules=skip_modules
        )
    from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-untyped]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skip_modules)


def _unquantized_layers(model: nn.Module) -> list[str] | None:
    """Return the layers that must not be quantized; None if only the head, which transformers skips by default."""
    bypassed = bypassed_layers(model)
    if not bypassed:
        return None
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [name for name, module in model.named_modules() if module is head] + bypassed


def loading_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `from_pretrained` for a pre-quantized model, from its config.json."""
    entry = quantization.table().get(quantization_kind(config) or "")
    if entry is None or entry.loads == "quantized":
        return {}
    return {
        "quantization_config": AutoQuantizationConfig.from_dict({**quantization_config(config), "dequantize": True})
    }


def is_quantized(model: Any) -> bool:
    """Return whether a model has quantized weights."""
    return bool(getattr(model, "is_quantized", False))


def rounds_inputs(model: Any) -> bool:
    """Return whether layers round their inputs, as 8-bit layers of bitsandbytes do in evaluation mode."""
    return bool(getattr(model, "is_loaded_in_8bit", False))


def apply_workarounds(model: PreTrainedModel) -> PreTrainedModel:
    """Work around silent library errors; call it after loading any model, quantized or not.

    - On CPUs with avx512_bf16, bitsandbytes repacks 4-bit weights in the first forward pass without gradients. Later
      passes have no gradient, so training stops after an evaluation. Repacking is disabled.
    - bitsandbytes logs a cast for every product with 8-bit weights. The message is filtered.
    - transformers quantizes a model again on saving if it was dequantized on loading, without writing so into the
      config; loading it then gives noise. The weight conversions are dropped.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_not_cast_warning)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if not is_quantized(model):
        _drop_weight_conversions(model)
    return model


def prepare_for_training(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a quantized base for adapters: freeze it and compute norms in float32.

    Unlike `prepare_model_for_kbit_training` of `peft`, nothing else is cast: embedding and head would need twice the
    memory. A norm returns its result in its original dtype.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if _is_norm(module):
            _compute_in_float32(module)
    return model


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Convert quantized weights to plain weights of the same values, in place; the model is then saved as usual.

    Raises:
        RecipeError: This kind of quantization cannot be dequantized.
    """
    if not is_quantized(model):
        return model
    kind = quantization_kind(model.config.to_dict())
    quantization.check_mergeable(kind)
    dtype = model.config.dtype or torch.float32
    if kind in ("bnb_4bit", "bnb_8bit"):
        model = _dequantize_bitsandbytes(model, dtype)
    elif kind == "torchao_int8":
        _dequantize_torchao(model, dtype)
    else:
        raise RecipeError(
            f"model: {kind} weights cannot be dequantized. Use the adapter with its base model, without merging."
        )
    _drop_weight_conversions(model)
    return model


def _is_not_cast_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _drop_weight_conversions(model: PreTrainedModel) -> None:
    """Drop the weight conversions of a quantizer; saving then uses those of the architecture."""
    conversions = getattr(model, "_weight_conversions", None) or []
    operations = (operation for conversion in conversions for operation in getattr(conversion, "operations", []))
    if any(hasattr(operation, "hf_quantizer") for operation in operations):
        model._weight_conversions = None


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    is_float = bool(parameters) and all(parameter.is_floating_point() for parameter in parameters)
    return "norm" in type(module).__name__.lower() and is_float


def _compute_in_float32(norm: nn.Module) -> None:
    dtype = next(norm.parameters(recurse=False)).dtype
    if dtype == torch.float32:
        return
    norm.float()
    norm.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs[:1]) + inputs[1:])
    norm.register_forward_hook(lambda _, inputs, output: output.to(dtype))


def _dequantize_bitsandbytes(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Dequantize with transformers, then restore the transposed layers (Conv1D) that it loses, as in GPT-2."""
    transposed = [name for name, module in model.named_modules() if getattr(module, "source_cls", None) is Conv1D]
    transformers_logging.get_logger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)
    model = model.dequantize(dtype)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # transformers keeps them, and peft reads them
        if hasattr(model, flag):
            setattr(model, flag, False)
    for name in transposed:
        linear = model.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight, layer.bias = nn.Parameter(linear.weight.T.contiguous()), linear.bias
        model.set_submodule(name, layer)
    return model


def _dequantize_torchao(model: PreTrainedModel, dtype: torch.dtype) -> None:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and type(weight).__module__.startswith("torchao."):
            module.weight = nn.Parameter(weight.dequantize().to(dtype), requires_grad=False)
    model.hf_quantizer.remove_quantization_config(model)
