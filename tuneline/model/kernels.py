"""Fused GPU kernels of libraries that are installed beside: Liger's for the base model, Unsloth's for its adapter.

Both replace code of the model by their own, so the logits are held against those of before; training does not begin
where they differ. Of Unsloth only the kernels are used: its loader brings its own attention and its own training loop.
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
"""Largest difference of logits, relative to their spread, that is rounding; 0.5 in half precision."""


def apply_liger(model: PreTrainedModel) -> str:
    """Fuse norms, positions and feed-forward networks of a base model.

    Returns:
        The decision in words.

    Raises:
        RecipeError: The library or a GPU is missing, or it has no kernels for this kind of model.
        ProofError: The kernels change what the model answers.
    """
    _check_requirements("liger", "liger_kernel", "pip install 'tuneline[liger]'")
    from liger_kernel.transformers import monkey_patch as liger  # type: ignore[import-not-found]

    kind = model.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(liger.MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise RecipeError(f"load.kernels: liger has none for {kind}. Set load.kernels: none. It has some for {known}.")
    # The loss stays ours: it asks for logits at trained positions only.
    ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    difference = _apply_verified("liger", model, partial(liger._apply_liger_kernel_to_instance, model=model, **ours))
    return f"liger for {kind}: norms, positions and feed-forward fused, logits differ by {difference:.1e}"


def fuse_adapter(model: nn.Module, config: ModelLoadOptions) -> dict[str, str]:
    """Fuse adapted layers with Unsloth's kernels, after a method was attached.

    Args:
        model: With its adapter.
        config: How to hold it; nothing is done unless `kernels` is `unsloth`.

    Raises:
        RecipeError: The library or a GPU is missing, or nothing in the model can be fused.
        ProofError: Fused kernels change what the model answers.
    """
    if config.kernels != "unsloth":
        return {}
    check_unsloth()
    layers = [module for module in model.modules() if _is_adapted_mlp(module)]
    if not layers:
        raise RecipeError(
            f"load.kernels: unsloth fuses LoRA on {', '.join(MLP_LAYERS)} of a SiLU network, and this model has none. "
            "Set load.kernels: none, or method.type: lora with all of them among method.target_modules."
        )
    from unsloth.kernels import apply_lora_mlp_swiglu  # type: ignore[import-not-found]

    def fuse() -> None:
        for layer in layers:
            layer.forward = MethodType(apply_lora_mlp_swiglu, layer)

    difference = _apply_verified("unsloth", model, fuse)
    return {"kernels": f"unsloth: {len(layers)} adapted networks fused, logits differ by {difference:.1e}"}


def check_unsloth() -> None:
    """Refuse Unsloth's kernels where they cannot run.

    Raises:
        RecipeError: The library or a GPU is missing.
    """
    _check_requirements("unsloth", "unsloth", "pip install unsloth")


def _check_requirements(key: str, package: str, install: str) -> None:
    """Refuse kernels of a library that is not here, or has no GPU to run on."""
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
    """Patch, and hold the logits against those of before; returns their difference, relative to their spread.

    Raises:
        ProofError: They differ by more than rounding.
    """
    before = _logits(model)
    patch()
    difference = max_relative_diff(before, _logits(model))
    if not difference <= TOLERANCE.get(model.dtype, 0.5):
        raise VerificationError(
            f"load.kernels: {kernels} computes something else than this model: its logits differ by {difference:.1e}, "
            "relative to their spread. Set load.kernels: none."
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
