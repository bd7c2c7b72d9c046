"""Fused GPU kernels of optional libraries: Liger for the base model, Unsloth for its adapter.

Both replace code of the model, so the logits are compared before and after; training does not start if they differ.
Of Unsloth only the kernels are used, not its loader, which has its own attention and training loop.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.errors import RecipeError, VerificationError
from tuneline.model.attention.isolation import sample_examples
from tuneline.model.logit_distance import max_relative_diff

MLP_LAYERS = ("gate_proj", "up_proj", "down_proj")
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Largest relative difference of logits that counts as rounding; 0.5 in half precision."""


def apply_liger(model: PreTrainedModel) -> str:
    """Fuse norms, rotary embeddings and feed-forward networks of a base model.

    Returns:
        A description of the change.

    Raises:
        RecipeError: The library or a GPU is missing, or the library has no kernels for this model type.
        VerificationError: The kernels change the output of the model.
    """
    _check_requirements("liger", "liger_kernel", "pip install 'tuneline[liger]'")
    from liger_kernel.transformers import monkey_patch as liger  # type: ignore[import-not-found]

    kind = model.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        supported = ", ".join(sorted(liger.MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise RecipeError(
            f"load.kernels: liger does not support {kind}. Set load.kernels: none. Supported: {supported}."
        )
    # Keep our own loss, which computes logits at trained positions only.
    options = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    difference = _apply_verified("liger", model, partial(liger._apply_liger_kernel_to_instance, model=model, **options))
    return f"liger for {kind}: norms, rotary embeddings and feed-forward fused, logits differ by {difference:.1e}"


def fuse_adapter(model: nn.Module, config: ModelLoadOptions) -> dict[str, str]:
    """Fuse adapted layers with Unsloth's kernels, after a method was attached.

    Args:
        model: Model with its adapter.
        config: Load options; nothing is done unless `kernels` is `unsloth`.

    Raises:
        RecipeError: The library or a GPU is missing, or no part of the model can be fused.
        VerificationError: Fused kernels change the output of the model.
    """
    if config.kernels != "unsloth":
        return {}
    check_unsloth()
    layers = [module for module in model.modules() if _is_adapted_mlp(module)]
    if not layers:
        raise RecipeError(
            f"load.kernels: unsloth fuses LoRA on {', '.join(MLP_LAYERS)} of a SiLU network, which this model lacks. "
            "Set load.kernels: none, or method.type: lora with all of them in method.target_modules."
        )
    from unsloth.kernels import apply_lora_mlp_swiglu  # type: ignore[import-not-found]

    def fuse() -> None:
        for layer in layers:
            layer.forward = MethodType(apply_lora_mlp_swiglu, layer)

    difference = _apply_verified("unsloth", model, fuse)
    return {"kernels": f"unsloth: {len(layers)} adapted networks fused, logits differ by {difference:.1e}"}


def check_unsloth() -> None:
    """Check that Unsloth's kernels can run here.

    Raises:
        RecipeError: The library or a GPU is missing.
    """
    _check_requirements("unsloth", "unsloth", "pip install unsloth")


def _check_requirements(key: str, package: str, install: str) -> None:
    """Reject kernels whose library or GPU is missing."""
    missing = [] if torch.cuda.is_available() else ["a CUDA device"]
    if find_spec(package) is None:
        missing.append(f"the package {package} ({install})")
    if missing:
        raise RecipeError(f"load.kernels: {key} needs {' and '.join(missing)}. Set load.kernels: none.")


def _is_adapted_mlp(module: nn.Module) -> bool:
    layers = [getattr(module, name, None) for name in MLP_LAYERS]
    silu = "silu" in type(getattr(module, "act_fn", None)).__name__.lower()
    return silu and all(hasattr(layer, "lora_A") for layer in layers)


def _apply_verified(kernels: str, model: Any, patch: Callable[[], None]) -> float:
    """Patch a model and compare its logits before and after; returns their largest relative difference.

    Raises:
        VerificationError: They differ by more than rounding.
    """
    before = _logits(model)
    patch()
    difference = max_relative_diff(before, _logits(model))
    if not difference <= TOLERANCE.get(model.dtype, 0.5):
        raise VerificationError(
            f"load.kernels: {kernels} changes the output of this model: the relative difference of its logits is "
            f"{difference:.1e}, more than rounding. Set load.kernels: none."
        )
    return difference


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    training = model.training
    model.eval()
    ids = torch.tensor([list(chain.from_iterable(sample_examples(model)))], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    return logits
