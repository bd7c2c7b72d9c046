"""Methods of training by name: how a base model is made trainable, saved and merged. Knows nothing of the loop."""

from pathlib import Path

from torch import nn

from tuneline.model.methods import adalora, bottleneck, full_and_freeze, ia3, lora, oft, prompts, vera
from tuneline.model.methods.adapter_io import adapter_method
from tuneline.model.methods.base import MethodFamily, families

__all__ = ["Family", "check_fits", "families", "family_of"]

METHOD_MODULES = (adalora, bottleneck, ia3, lora, oft, prompts, vera, full_and_freeze)
"""Importing them fills the registry."""


def check_fits(model: nn.Module, folder: Path) -> None:
    """Refuse an adapter that was made for another base, by its files' shapes.

    Args:
        model: Base model, or its shape.
        folder: The adapter.

    Raises:
        RecipeError: It does not fit, or is none of our methods.
    """
    families[adapter_method(folder)].check_fits(model, folder)
