"""Fine-tuning methods by name (`method.type`): attach, save and merge. Independent of the training loop."""

from pathlib import Path

from torch import nn

from tuneline.model.methods import adalora, bottleneck, full_and_freeze, ia3, lora, oft, prompts, vera
from tuneline.model.methods.adapter_io import adapter_method
from tuneline.model.methods.base import MethodFamily, families

__all__ = ["MethodFamily", "adapter_method", "check_fits", "families"]

METHOD_MODULES = (adalora, bottleneck, ia3, lora, oft, prompts, vera, full_and_freeze)
"""Importing these modules fills the registry."""


def check_fits(model: nn.Module, folder: Path) -> None:
    """Check by tensor shapes that an adapter belongs to a base model.

    Args:
        model: Base model; may be on the meta device.
        folder: Adapter folder.

    Raises:
        RecipeError: The adapter does not fit, or its method is unsupported.
    """
    families[adapter_method(folder)].check_fits(model, folder)
