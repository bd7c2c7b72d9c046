"""Patches of a loaded base model: gradient checkpointing, fused kernels, ZeRO-3 leaf modules.

A patch changes how the model computes, not its output. Fused kernels are in `kernels`.
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
"""Operations whose results `selective` checkpointing saves. Not `bmm`, which eager attention uses: its scores grow with
the square of the row length (Korthikanti et al. 2022, arXiv:2205.05198)."""

CHEAP_RATIO = 1 / 8
"""A matrix product with fewer inputs than this share of its outputs is recomputed: LoRA's second product, whose result
is as large as that of its layer. Saving both used more memory than no checkpointing (15.9 versus 13.9 MB; without the
second, 9.4 MB)."""

fuse_adapter = kernels.fuse_adapter
"""The only patch that runs after a method was attached."""

EXPERT_NAMES = re.compile(r"expert|moe", re.IGNORECASE)


def apply_patches(model: PreTrainedModel, config: ModelLoadOptions) -> dict[str, str]:
    """Apply the patches of the recipe to a base model, before a method is attached.

    Args:
        model: Base model with its weights.
        config: Load options.

    Returns:
        Descriptions of the patches, by subject.

    Raises:
        RecipeError: The model or this machine does not support a patch.
        VerificationError: Fused kernels change the output of the model.
    """
    decisions = {}
    if config.kernels == "liger":
        decisions["kernels"] = kernels.apply_liger(model)
    elif config.kernels == "unsloth":
        kernels.check_unsloth()  # it fuses adapters, which are attached later
    if config.gradient_checkpointing != "none":
        decisions["gradient_checkpointing"] = enable_gradient_checkpointing(model, config.gradient_checkpointing)
    if leaves := mark_zero3_leaf_modules(model):
        names = ", ".join(sorted(leaf.__name__ for leaf in leaves))
        decisions["zero3_leaf_modules"] = f"{names} are gathered as a whole"
    return decisions


def enable_gradient_checkpointing(model: PreTrainedModel, kind: str) -> str:
    """Recompute activations in the backward pass.

    Args:
        model: Base model.
        kind: `full` saves only the inputs of layers, `selective` also the results of `SAVED_OPS`.

    Returns:
        A description of the choice.

    Raises:
        RecipeError: The architecture does not support gradient checkpointing.
    """
    if not model.supports_gradient_checkpointing:
        raise RecipeError(
            f"load.gradient_checkpointing: {kind} is not supported by {type(model).__name__} in transformers. Set "
            "load.gradient_checkpointing: none."
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        # transformers adds the bias of experts in place, and torch rejects a saved result that was modified.
        has_bias = any(getattr(module, "has_bias", False) for module in model.modules())
        policy = partial(checkpoint_policy, SAVED_OPS - GROUPED_MM_OPS if has_bias else SAVED_OPS)
        options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    # Only reentrant checkpointing needs inputs with gradients; they extend the backward pass to frozen layers.
    model.disable_input_require_grads()
    saved = "layer inputs" if kind == "full" else "results of matrix products and attention"
    return f"{kind}: {saved} are saved, everything else is recomputed"


def checkpoint_policy(saved_ops: set[str], _: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return whether the result of an operation is saved; a policy function of torch once `saved_ops` is bound.

    Attention with dropout inside its kernel is recomputed: skipping it would not advance the random state, and later
    layers would drop different values than in the forward pass.
    """
    if operation.name() not in saved_ops or _has_dropout(operation, args, kwargs) or _is_cheap(operation, args):
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE


def mark_zero3_leaf_modules(model: nn.Module) -> set[type[nn.Module]]:
    """Make ZeRO-3 gather each mixture of experts as a whole: processes run different experts and would deadlock.

    Returns:
        The marked classes; empty unless DeepSpeed runs stage 3.
    """
    leaves = moe_blocks(model) if is_deepspeed_zero3_enabled() else set()
    if leaves:
        from deepspeed.utils import set_z3_leaf_modules  # type: ignore[import-not-found]

        set_z3_leaf_modules(model, list(leaves))
    return leaves


def moe_blocks(model: nn.Module) -> set[type[nn.Module]]:
    """Find the classes that contain a router and its experts."""
    owners = set()
    for name, module in model.named_modules():
        if _holds_experts(name, module):
            path = name.split(".")
            above = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path), 0, -1))
            owners.add(next((type(owner) for owner in above if _has_router(owner)), type(module)))
    return owners


def _has_dropout(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    names = [argument.name for argument in getattr(getattr(operation, "_schema", None), "arguments", [])]
    arguments = dict(zip(names, args, strict=False)) | kwargs
    return bool(arguments.get("dropout_p", 0.0))


def _is_cheap(operation: Any, args: tuple[Any, ...]) -> bool:
    if operation.name() not in ("aten::mm", "aten::addmm"):
        return False
    inputs, outputs = args[-1].shape
    return bool(inputs < CHEAP_RATIO * outputs)


def _holds_experts(name: str, module: nn.Module) -> bool:
    """Return whether a module contains the experts of a block, by its name or by a 3-D parameter."""
    suffix = name.rpartition(".")[2]
    if suffix == "experts":
        return True
    is_fused = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return is_fused and bool(EXPERT_NAMES.search(f"{suffix} {type(module).__name__}"))


def _has_router(module: nn.Module) -> bool:
    return any(ROUTER_NAME.search(name) for name, _ in module.named_children())
