"""The compatibility table: which choices of a recipe can be combined. `compatibility_docs` renders it.

The table is data (`compatibility.yaml`): axes with their values, combinations that are refused and why,
and choices that need what a plain CPU lacks. Imports nothing heavy.
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
"""Axis -> the recipe's key."""

Choice = Mapping[str, str]
"""A value for each axis."""


class Combination(Config):
    """Values of some axes that occur together."""

    when: dict[str, list[str]]
    """Axis -> values; it holds where every axis has one of its values."""

    def holds(self, choice: Choice) -> bool:
        """Tell whether a choice is this combination."""
        return all(choice.get(axis) in values for axis, values in self.when.items())


class Incompatibility(Combination):
    """A combination that cannot work."""

    because: str
    instead: str


class Requirement(Combination):
    """A choice that works, but not on a plain CPU."""

    needs: str


class CompatibilityTable(Config):
    """The whole table."""

    axes: dict[str, dict[str, str]]
    """Axis -> value -> what it means."""

    defaults: dict[str, str]
    """What an axis is where only others are spoken of."""

    refused: list[Incompatibility] = Field(default_factory=list)
    elsewhere: list[Requirement] = Field(default_factory=list)
    left_out: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Axis -> value that a library knows and we do not take -> why, and what to set."""

    def incompatibilities(self, choice: Choice) -> list[Incompatibility]:
        """Return why a choice cannot work; nothing where it can."""
        return [each for each in self.refused if each.holds(choice)]

    def needs(self, choice: Choice) -> str:
        """Return what a choice needs beyond a CPU, or an empty text."""
        return ", ".join(each.needs for each in self.elsewhere if each.holds(choice))

    def pairs(self, axis: str) -> list[dict[str, str]]:
        """Return every method with every value of an axis, all else as by default."""
        found = []
        for method, value in product(self.axes["method"], self.axes[axis]):
            rows = {"rows": "alone"} if axis != "rows" and self._wants_rows_alone(method) else {}
            found.append({**self.defaults, **rows, "method": method, axis: value})
        return found

    def _wants_rows_alone(self, method: str) -> bool:
        return bool(self.incompatibilities({"method": method, "rows": self.defaults["rows"]}))


@cache
def table() -> CompatibilityTable:
    """Read the table."""
    return CompatibilityTable.model_validate(yaml.safe_load(TABLE_FILE.read_text()))


def method_variant(method: Any) -> str:
    """Return a method's line in the table: its type, or which of LoRA's kin it is."""
    if method.type != "lora":
        return str(method.type)
    kin = {"rslora": method.use_rslora, "dora": method.use_dora, "lora_plus": method.loraplus_lr_ratio is not None}
    start = method.init_lora_weights
    return next((name for name, asked in kin.items() if asked), "lora" if start == "default" else str(start))
