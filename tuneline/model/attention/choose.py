"""Which kind of attention a model computes on this machine, and why.

Decided from the config, before any weights are read. What the machine lacks and what the architecture does not allow is
said in one sentence, so that `auto` can tell why it passed a kind over, and a recipe that asks for it can be refused.
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
"""Package, whether it is here, and the least compute capability: Ampere, Hopper."""

MASK_READING_MARKERS = ("allow_is_causal_skip", "position_bias=")
"""Found in an architecture's source where it computes with the mask itself, or adds to the scores."""


def choose_attention(
    requested: str, *, config: Any, dtype: torch.dtype, packed: bool, s2: bool = False
) -> tuple[str, str]:
    """Choose the kind of attention.

    Args:
        requested: `load.attention` of the recipe.
        config: The model's, as transformers reads it.
        dtype: In which attention is computed.
        packed: Several examples share a row.
        s2: `load.s2_group_size_ratio` is given.

    Returns:
        The kind as transformers calls it, and the reason in words.

    Raises:
        RecipeError: The kind that the recipe asks for is not possible here.
    """
    model_class = causal_lm_class(config)
    if s2:
        return _choose_shifted(requested, model_class, config, dtype)
    if requested == "auto":
        return _first_supported(model_class, config, dtype, packed=packed)
    if why_not := unsupported_reason(requested, model_class, config, dtype):
        instead, _ = _first_supported(model_class, config, dtype, packed=packed)
        raise RecipeError(f"load.attention: {requested} {why_not}. Set load.attention: {instead}.")
    return requested, "as the recipe says"


def unsupported_reason(kind: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> str:
    """Say why a kind of attention is not possible here, or return an empty string."""
    if kind in FLASH_REQUIREMENTS:
        return _flash_obstacle(kind, model_class, config, dtype)
    if kind == "flex_attention":
        return _flex_obstacle(model_class, config)
    if kind in ("segment", "s2"):
        return _bounds_obstacle(model_class)
    if kind == "sdpa" and not model_class._supports_sdpa:
        return f"leaves out a part of what {model_class.__name__} computes"
    return ""


def causal_lm_class(config: Any) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` would make of a config.

    Raises:
        RecipeError: It is no causal language model.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is None:
        raise RecipeError(
            f"model: {config.model_type} is no causal language model that transformers knows. Take another model, or "
            "one whose config.json names its code under auto_map, with load.trust_remote_code: true."
        )
    return get_class_from_dynamic_module(reference, config._name_or_path)


def _first_supported(
    model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype, *, packed: bool
) -> tuple[str, str]:
    """Return the first kind that is possible; `segment` is of no use where each example has a row of its own."""
    passed_over = []
    for kind in ("flash_attention_2", *(["segment"] if packed else []), "sdpa", "eager"):
        why_not = unsupported_reason(kind, model_class, config, dtype)
        if not why_not:
            break
        passed_over.append(f"{kind} {why_not}")
    return kind, "; ".join(passed_over) or "the fastest on this machine"


def _choose_shifted(
    requested: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype
) -> tuple[str, str]:
    if requested != "auto":
        raise RecipeError(
            f"load.s2_group_size_ratio is a kind of attention by itself, and load.attention: {requested} asks for "
            "another. Set load.attention: auto, or leave load.s2_group_size_ratio out."
        )
    if why_not := unsupported_reason("s2", model_class, config, dtype):
        raise RecipeError(f"load.s2_group_size_ratio {why_not}. Leave it out.")
    return "s2", "load.s2_group_size_ratio asks for it"


def _flash_obstacle(kind: str, model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> str:
    package, is_here, capability = FLASH_REQUIREMENTS[kind]
    needs = []
    if not torch.cuda.is_available():
        needs.append("a CUDA device")
    elif torch.cuda.get_device_capability() < capability:
        needs.append(f"a GPU of compute capability {capability[0]}.{capability[1]}")
    if not is_here():
        needs.append(f"the package {package}")
    if dtype not in HALF_DTYPES:
        needs.append("load.dtype: bfloat16 or float16")
    if needs:
        return f"needs {' and '.join(needs)}"
    others = getattr(model_class, "_compatible_flash_implementations", None)
    if not model_class._supports_flash_attn or (others and kind not in others):
        return f"is not supported by {model_class.__name__}"
    return _dropout_obstacle(config) if kind == "flash_attention_3" else ""


def _flex_obstacle(model_class: type[PreTrainedModel], config: Any) -> str:
    if not torch.cuda.is_available():
        return "needs a CUDA device, for its backward pass is not implemented on a CPU"
    if not model_class._supports_flex_attn:
        return f"is not supported by {model_class.__name__}"
    return _dropout_obstacle(config)


def _dropout_obstacle(config: Any) -> str:
    share = getattr(config, "attention_dropout", 0.0)
    return f"has no dropout, and this model's attention_dropout is {share}" if share else ""


def _bounds_obstacle(model_class: type[PreTrainedModel]) -> str:
    name = model_class.__name__
    if not model_class._can_set_attn_implementation():
        return f"needs an architecture that lets its attention be replaced, and {name} does not"
    if not model_class._supports_sdpa:
        return f"leaves out a part of what {name} computes"
    source = inspect.getsource(sys.modules[model_class.__module__])
    if any(mark in source for mark in MASK_READING_MARKERS):
        return f"leaves out a part of what {name} computes, which reads its mask or adds to the scores"
    return ""
