"""Compatibility table: which options of a recipe can be combined.

The table is data (`compatibility.yaml`): axes with their values, incompatible combinations with reasons, and
combinations that require more than a CPU. It is checked when a recipe is read and rendered in the documentation.
Imports no heavy libraries.
"""

from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from tuneline.config.base import Config

TABLE_FILE = Path(__file__).with_name("compatibility.yaml")
RECIPE_KEYS = {
    "stage": "stage",
    "method": "method",
    "quantization": "load.quantization",
    "dtype": "load.dtype",
    "attention": "load.attention",
    "s2": "load.s2_group_size_ratio",
    "rows": "tokenize.packing",
    "gradient_checkpointing": "load.gradient_checkpointing",
    "vocabulary": "load.new_tokens",
    "start": "load.train_from_scratch",
    "optimizer": "train.optim",
    "kernels": "load.kernels",
    "noise": "train.neftune_noise_alpha",
}
"""Axis -> key in the recipe."""

Choice = Mapping[str, str]
"""Axis -> value of a recipe."""


class Combination(Config):
    """Values of some axes that occur together."""

    when: dict[str, list[str]]
    """Axis -> values. The combination holds if every axis has one of its values."""

    def holds(self, choice: Choice) -> bool:
        """Return whether a choice contains this combination."""
        return all(choice.get(axis) in values for axis, values in self.when.items())


class Incompatibility(Combination):
    """A combination that is not supported."""

    reason: str
    fix: str


class Requirement(Combination):
    """A combination that is supported, but requires more than a plain CPU."""

    needs: str


class CompatibilityTable(Config):
    """The compatibility table."""

    axes: dict[str, dict[str, str]]
    """Axis -> value -> description."""

    defaults: dict[str, str]
    """Axis -> default value in the rendered tables."""

    incompatible: list[Incompatibility] = Field(default_factory=list)
    requirements: list[Requirement] = Field(default_factory=list)
    unsupported: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Axis -> value that an upstream library supports and Tuneline does not -> reason and alternative."""

    def incompatibilities(self, choice: Choice) -> list[Incompatibility]:
        """Return the incompatible combinations in a choice; empty if it is supported."""
        return [rule for rule in self.incompatible if rule.holds(choice)]

    def needs(self, choice: Choice) -> str:
        """Return what a choice requires beyond a CPU, or an empty string."""
        return ", ".join(rule.needs for rule in self.requirements if rule.holds(choice))

    def pairs(self, axis: str) -> list[dict[str, str]]:
        """Return every method with every value of an axis; all other axes have their default."""
        choices = []
        for method, value in product(self.axes["method"], self.axes[axis]):
            rows = {"rows": "alone"} if axis != "rows" and self._needs_single_rows(method) else {}
            choices.append({**self.defaults, **rows, "method": method, axis: value})
        return choices

    def _needs_single_rows(self, method: str) -> bool:
        return bool(self.incompatibilities({"method": method, "rows": self.defaults["rows"]}))


@cache
def table() -> CompatibilityTable:
    """Return the compatibility table."""
    return CompatibilityTable.model_validate(yaml.safe_load(TABLE_FILE.read_text()))


def method_variant(method: Any) -> str:
    """Return a method's name in the table: its type, or the LoRA variant."""
    if method.type != "lora":
        return str(method.type)
    variants = {"rslora": method.use_rslora, "dora": method.use_dora, "lora_plus": method.loraplus_lr_ratio is not None}
    init = method.init_lora_weights
    return next((name for name, enabled in variants.items() if enabled), "lora" if init == "default" else str(init))
