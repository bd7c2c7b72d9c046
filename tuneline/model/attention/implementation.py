"""Choose the attention implementation of a model on this machine.

The choice depends on the config only, before weights are loaded. For each implementation one sentence states what the
machine lacks or the architecture does not support: `auto` reports it, and an unsupported request is rejected with it.
"""

import inspect
import sys
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from tuneline.errors import RecipeError

HALF_DTYPES = (torch.float16, torch.bfloat16)
FLASH_REQUIREMENTS = {
    "flash_attention_2": ("flash-attn", is_flash_attn_2_available, (8, 0)),
    "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available, (9, 0)),
}
"""Package, check for its installation, and minimum compute capability (Ampere, Hopper)."""

MASK_READING_MARKERS = ("allow_is_causal_skip", "position_bias=")
"""Markers in the source of architectures that compute with the mask itself or add to the scores."""


def choose_attention(
    requested: str, *, config: Any, dtype: torch.dtype, packed: bool, s2: bool = False
) -> tuple[str, str]:
    """Choose the attention implementation.

    Args:
        requested: `load.attention` of the recipe.
        config: Model config of transformers.
        dtype: Compute dtype of attention.
        packed: Whether several examples share a row.
        s2: Whether `load.s2_group_size_ratio` is set.

    Returns:
        The implementation, as in transformers, and the reason.

    Raises:
        RecipeError: The requested implementation is not supported here.
    """
    model_class = causal_lm_class(config)
    if s2:
        return _choose_shifted(requested, model_class, config, dtype)
    if requested == "auto":
        return _first_supported(model_class, config, dtype, packed=packed)
    if reason := unsupported_reason(requested, model_class, config, dtype):
        supported, _ = _first_supported(model_class, config, dtype, packed=packed)
        raise RecipeError(f"load.attention: {requested} {reason}. Set load.attention: {supported}.")
    return requested, "set in the recipe"


def unsupported_reason(kind: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> str:
    """Return why an attention implementation is not supported here, or an empty string."""
    if kind in FLASH_REQUIREMENTS:
        return _flash_unsupported_reason(kind, model_class, config, dtype)
    if kind == "flex_attention":
        return _flex_unsupported_reason(model_class, config)
    if kind in ("segment", "s2"):
        return _bounds_unsupported_reason(model_class)
    if kind == "sdpa" and not model_class._supports_sdpa:
        return f"omits a part of the attention of {model_class.__name__}"
    return ""


def causal_lm_class(config: Any) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` builds from a config.

    Raises:
        RecipeError: The config does not belong to a causal language model.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is None:
        raise RecipeError(
            f"model: {config.model_type} is not a causal language model in transformers. Use another model, or one "
            "whose config.json references its code under auto_map, with load.trust_remote_code: true."
        )
    return get_class_from_dynamic_module(reference, config._name_or_path)


def _first_supported(
    model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype, *, packed: bool
) -> tuple[str, str]:
    """Return the first supported implementation; `segment` is considered for packed rows only."""
    skipped = []
    for kind in ("flash_attention_2", *(["segment"] if packed else []), "sdpa", "eager"):
        reason = unsupported_reason(kind, model_class, config, dtype)
        if not reason:
            break
        skipped.append(f"{kind} {reason}")
    return kind, "; ".join(skipped) or "the fastest on this machine"


def _choose_shifted(
    requested: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype
) -> tuple[str, str]:
    if requested != "auto":
        raise RecipeError(
            "load.s2_group_size_ratio selects an attention implementation and cannot be combined with "
            f"load.attention: {requested}. Set load.attention: auto, or remove load.s2_group_size_ratio."
        )
    if reason := unsupported_reason("s2", model_class, config, dtype):
        raise RecipeError(f"load.s2_group_size_ratio {reason}. Remove it.")
    return "s2", "load.s2_group_size_ratio is set"


def _flash_unsupported_reason(kind: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> str:
    package, is_installed, capability = FLASH_REQUIREMENTS[kind]
    requirements = []
    if not torch.cuda.is_available():
        requirements.append("a CUDA device")
    elif torch.cuda.get_device_capability() < capability:
        requirements.append(f"a GPU of compute capability {capability[0]}.{capability[1]}")
    if not is_installed():
        requirements.append(f"the package {package}")
    if dtype not in HALF_DTYPES:
        requirements.append("load.dtype: bfloat16 or float16")
    if requirements:
        return f"needs {' and '.join(requirements)}"
    compatible = getattr(model_class, "_compatible_flash_implementations", None)
    if not model_class._supports_flash_attn or (compatible and kind not in compatible):
        return f"is not supported by {model_class.__name__}"
    return _dropout_unsupported_reason(config) if kind == "flash_attention_3" else ""


def _flex_unsupported_reason(model_class: type[PreTrainedModel], config: Any) -> str:
    if not torch.cuda.is_available():
        return "needs a CUDA device: its backward pass is not implemented on CPUs"
    if not model_class._supports_flex_attn:
        return f"is not supported by {model_class.__name__}"
    return _dropout_unsupported_reason(config)


def _dropout_unsupported_reason(config: Any) -> str:
    dropout = getattr(config, "attention_dropout", 0.0)
    return f"does not support dropout, and this model's attention_dropout is {dropout}" if dropout else ""


def _bounds_unsupported_reason(model_class: type[PreTrainedModel]) -> str:
    name = model_class.__name__
    if not model_class._can_set_attn_implementation():
        return f"needs an architecture with replaceable attention, which {name} does not support"
    if not model_class._supports_sdpa:
        return f"omits a part of the attention of {name}"
    source = inspect.getsource(sys.modules[model_class.__module__])
    if any(marker in source for marker in MASK_READING_MARKERS):
        return f"omits a part of the attention of {name}, which reads its mask or adds to the scores"
    return ""
