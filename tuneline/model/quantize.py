"""Weights in fewer bits: made while loading, guarded against silent faults, and turned back into full ones.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) trains an adapter on 4-bit weights. The adapter then belongs to those
weights, not to the ones that they were made from: it is merged into what they dequantize to. What can be done with
which kind stands in `tuneline/config/validation/quantization.yaml`.
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
    "config_for",
    "dequantized",
    "guard",
    "is_quantized",
    "prepare",
    "quantization_kind",
    "reading",
    "rounds_inputs",
]


def build_quantization_config(
    quantization: Quantization, compute_dtype: torch.dtype, model: nn.Module | None = None
) -> Any:
    """Return what `from_pretrained` takes as `quantization_config`.

    Args:
        quantization: The recipe's.
        compute_dtype: Type that 4-bit weights are turned into for each product.
        model: The base model's shape; layers whose weights are read past them, and the head, then stay as they are.
    """
    kept = _unquantized_layers(model) if model is not None else None
    if isinstance(quantization, Bnb4bit):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=kept,
        )
    if isinstance(quantization, Bnb8bit):
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=quantization.llm_int8_threshold, llm_int8_skip_modules=kept
        )
    from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-untyped]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)


def _unquantized_layers(model: nn.Module) -> list[str] | None:
    """Name the layers that cannot be quantized; None, which leaves it to transformers, where there is but the head."""
    past = bypassed_layers(model)
    if not past:
        return None
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [name for name, module in model.named_modules() if module is head] + past


def loading_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `from_pretrained` for a model that comes quantized, by its config.json."""
    entry = quantization.table().get(quantization_kind(config) or "")
    if entry is None or entry.loads == "quantized":
        return {}
    return {
        "quantization_config": AutoQuantizationConfig.from_dict({**quantization_config(config), "dequantize": True})
    }


def is_quantized(model: Any) -> bool:
    """Tell whether some weights of a model are held in fewer bits."""
    return bool(getattr(model, "is_quantized", False))


def rounds_inputs(model: Any) -> bool:
    """Tell whether products round what comes in, which bitsandbytes' 8-bit layers do in evaluation."""
    return bool(getattr(model, "is_loaded_in_8bit", False))


def apply_workarounds(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the libraries below from silent faults; call it once a model was read, quantized or not.

    - bitsandbytes packs 4-bit weights anew in the first forward pass without gradients, on CPUs with avx512_bf16; what
      passes through them afterwards has no gradient, so training stands still after an evaluation. The packing is off.
    - bitsandbytes tells of a cast for every product with 8-bit weights. It is silenced.
    - transformers saves a model that it dequantized while reading in few bits again, and its config does not say so:
      what is read from there is noise. The way back is forgotten.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_not_cast_warning)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if not is_quantized(model):
        _drop_weight_conversions(model)
    return model


def prepare_for_training(model: PreTrainedModel) -> PreTrainedModel:
    """Make a quantized base ready for adapters: frozen, and norms in float32.

    Unlike peft's `prepare_model_for_kbit_training`, nothing else is cast: embedding and head would take twice the room.
    A norm computes in float32 and gives its result in the type that it had.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if _is_norm(module):
            _compute_in_float32(module)
    return model


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Turn quantized weights into plain ones of the same values, in place; the result is saved like any other model.

    Raises:
        RecipeError: There is no way back from this kind.
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
        raise RecipeError(f"model: there is no way back from {kind} to full weights. Keep the adapter beside its base.")
    _drop_weight_conversions(model)
    return model


def _is_not_cast_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _drop_weight_conversions(model: PreTrainedModel) -> None:
    """Drop the conversions by which a quantizer read the weights; saving then takes those of the architecture."""
    conversions = getattr(model, "_weight_conversions", None) or []
    if any(hasattr(operation, "hf_quantizer") for each in conversions for operation in getattr(each, "operations", [])):
        model._weight_conversions = None


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(own) and all(each.is_floating_point() for each in own)


def _compute_in_float32(norm: nn.Module) -> None:
    dtype = next(norm.parameters(recurse=False)).dtype
    if dtype == torch.float32:
        return
    norm.float()
    norm.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs[:1]) + inputs[1:])
    norm.register_forward_hook(lambda _, inputs, output: output.to(dtype))


def _dequantize_bitsandbytes(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Call the library, then give back to GPT-2 and its kin the transposed layers that it forgets of."""
    transposed = [name for name, module in model.named_modules() if getattr(module, "source_cls", None) is Conv1D]
    transformers_logging.get_logger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)
    model = model.dequantize(dtype)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # peft goes by them, and they outlive the weights
        if hasattr(model, mark):
            setattr(model, mark, False)
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
