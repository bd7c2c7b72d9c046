"""What is done to a base model once it is in memory: recomputed activations, fused kernels, experts kept whole.

Each patch changes how the model is computed and not what it computes. Fused kernels are in `kernels`.
"""

import re
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.errors import RecipeError
from tuneline.model import kernels
from tuneline.model.targets import ROUTER_NAME

GROUPED_MM_OPS = {"aten::_grouped_mm", "transformers::grouped_mm_fallback"}
SAVED_OPS = GROUPED_MM_OPS | {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "flex_attention",
}
"""Operations whose results `selective` keeps. Not `bmm`: it is attention spelled out, whose scores grow with the square
of the row (Korthikanti et al. 2022, arXiv:2205.05198)."""

CHEAP_RATIO = 1 / 8
"""A product with fewer inputs than this share of its outputs is computed again: LoRA's second, as large as that
of its layer. Keeping both held more than no checkpointing did (15.9 against 13.9 MB; without the second, 9.4)."""

fuse_adapter = kernels.fuse_adapter
"""The one patch that comes after a method was attached."""

EXPERT_NAMES = re.compile(r"expert|moe", re.IGNORECASE)


def apply_patches(model: PreTrainedModel, config: ModelLoadOptions) -> dict[str, str]:
    """Patch a base model as the recipe says, before a method is attached.

    Args:
        model: Weights loaded.
        config: How to hold it.

    Returns:
        What was done, in words, by what it concerns.

    Raises:
        RecipeError: The model or this machine cannot be patched so.
        ProofError: Fused kernels change what the model answers.
    """
    decisions = {}
    if config.kernels == "liger":
        decisions["kernels"] = kernels.apply_liger(model)
    elif config.kernels == "unsloth":
        kernels.check_unsloth()  # it fuses adapters, which are not there yet
    if config.gradient_checkpointing != "none":
        decisions["gradient_checkpointing"] = enable_gradient_checkpointing(model, config.gradient_checkpointing)
    if leaves := mark_zero3_leaf_modules(model):
        decisions["zero3_leaf_modules"] = f"{', '.join(sorted(leaf.__name__ for leaf in leaves))} are gathered whole"
    return decisions


def enable_gradient_checkpointing(model: PreTrainedModel, kind: str) -> str:
    """Recompute activations in the backward pass.

    Args:
        model: Base model.
        kind: `full` keeps only the inputs of layers, `selective` what `KEPT` names besides.

    Returns:
        The decision in words.

    Raises:
        RecipeError: The architecture has no layers that can be recomputed.
    """
    if not model.supports_gradient_checkpointing:
        raise RecipeError(
            f"load.gradient_checkpointing: {kind} needs layers that can be recomputed, and {type(model).__name__} has "
            "none that transformers knows of. Set load.gradient_checkpointing: none."
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        # transformers adds the bias of experts in place, and torch refuses a kept result that was changed.
        biased = any(getattr(module, "has_bias", False) for module in model.modules())
        policy = partial(checkpoint_policy, SAVED_OPS - GROUPED_MM_OPS if biased else SAVED_OPS)
        options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    # Only the reentrant kind needs inputs with gradients; they would send the backward pass through frozen layers.
    model.disable_input_require_grads()
    told = "only inputs of layers are kept" if kind == "full" else "results of matrix products and attention are kept"
    return f"{kind}: {told}, the rest is computed again"


def checkpoint_policy(kept: set[str], _: Any, operation: Any, *values: Any, **named: Any) -> CheckpointPolicy:
    """Say whether the result of an operation is kept; with `kept` given, it is a policy function of torch.

    Attention that drops within its kernel is computed again: skipping it would leave the random numbers of the layers
    behind it where they were, and those would drop something else than in the forward pass.
    """
    if operation.name() not in kept or _dropout(operation, values, named) or _is_cheap(operation, values):
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE


def mark_zero3_leaf_modules(model: nn.Module) -> set[type[nn.Module]]:
    """Let ZeRO-3 gather mixtures of experts whole: which experts run differs between processes, which would hang.

    Returns:
        The classes that were marked; none unless DeepSpeed runs stage 3.
    """
    leaves = moe_blocks(model) if is_deepspeed_zero3_enabled() else set()
    if leaves:
        from deepspeed.utils import set_z3_leaf_modules  # type: ignore[import-not-found]

        set_z3_leaf_modules(model, list(leaves))
    return leaves


def moe_blocks(model: nn.Module) -> set[type[nn.Module]]:
    """Find the classes that hold a router and its experts."""
    owners = set()
    for name, module in model.named_modules():
        if _holds_experts(name, module):
            path = name.split(".")
            above = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path), 0, -1))
            owners.add(next((type(owner) for owner in above if _has_router(owner)), type(module)))
    return owners


def _dropout(operation: Any, values: tuple[Any, ...], named: dict[str, Any]) -> bool:
    names = [argument.name for argument in getattr(getattr(operation, "_schema", None), "arguments", [])]
    given = dict(zip(names, values, strict=False)) | named
    return bool(given.get("dropout_p", 0.0))


def _is_cheap(operation: Any, values: tuple[Any, ...]) -> bool:
    if operation.name() not in ("aten::mm", "aten::addmm"):
        return False
    inputs, outputs = values[-1].shape
    return bool(inputs < CHEAP_RATIO * outputs)


def _holds_experts(name: str, module: nn.Module) -> bool:
    """Tell whether a module is the experts of a block by its name, or has their matrices in one parameter."""
    own = name.rpartition(".")[2]
    if own == "experts":
        return True
    fused = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return fused and bool(EXPERT_NAMES.search(f"{own} {type(module).__name__}"))


def _has_router(module: nn.Module) -> bool:
    return any(ROUTER_NAME.search(name) for name, _ in module.named_children())
