"""Which choices of a recipe go together: a table that is read when a recipe is loaded, and rendered for readers.

The table is data (`support.yaml`): axes with their values, combinations that are refused and why, and choices that need
what a plain CPU lacks. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from tuneline.config import optimizers
from tuneline.config.base import Config

if TYPE_CHECKING:
    from tuneline.config.recipe import Recipe

FILE = Path(__file__).parent / "support.yaml"
KEYS = {
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


class Refusal(Combination):
    """A combination that cannot work."""

    because: str
    instead: str


class Elsewhere(Combination):
    """A choice that works, but not on a plain CPU."""

    needs: str


class Support(Config):
    """The whole table."""

    axes: dict[str, dict[str, str]]
    """Axis -> value -> what it means."""

    defaults: dict[str, str]
    """What an axis is where only others are spoken of."""

    refused: list[Refusal] = Field(default_factory=list)
    elsewhere: list[Elsewhere] = Field(default_factory=list)
    left_out: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Axis -> value that a library knows and we do not take -> why, and what to set."""

    def refusals(self, choice: Choice) -> list[Refusal]:
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
        return bool(self.refusals({"method": method, "rows": self.defaults["rows"]}))


@cache
def table() -> Support:
    """Read the table."""
    return Support.model_validate(yaml.safe_load(FILE.read_text()))


def choice_of(recipe: "Recipe") -> dict[str, str]:
    """Return the value that a recipe takes on each axis."""
    load, train = recipe.load, recipe.train
    batched = train.per_device_train_batch_size > 1
    return {
        "stage": recipe.stage,
        "method": variant(recipe.method),
        "quantization": load.quantization.type if load.quantization else "none",
        "dtype": load.dtype,
        "attention": load.attention,
        "s2": "on" if load.s2_group_size_ratio else "off",
        "rows": "packed" if recipe.tokenize.packing else "batched" if batched else "alone",
        "gradient_checkpointing": load.gradient_checkpointing,
        "vocabulary": "extended" if load.new_tokens or load.new_special_tokens else "as_it_is",
        "start": "random" if load.train_from_scratch else "trained",
        "optimizer": train.optim,
        "kernels": load.kernels,
        "noise": "on" if train.neftune_noise_alpha else "off",
    }


def variant(method: Any) -> str:
    """Return a method's line in the table: its type, or which of LoRA's kin it is."""
    if method.type != "lora":
        return str(method.type)
    kin = {"rslora": method.use_rslora, "dora": method.use_dora, "lora_plus": method.loraplus_lr_ratio is not None}
    start = method.init_lora_weights
    return next((name for name, asked in kin.items() if asked), "lora" if start == "default" else str(start))


def check(recipe: "Recipe") -> None:
    """Refuse a recipe whose choices do not go together.

    Raises:
        ValueError: Every combination that cannot work, and what to set instead; a library of the optimizer is missing.
    """
    choice = choice_of(recipe)
    if found := table().refusals(choice):
        raise ValueError(" ".join(_sentence(each, choice) for each in found))
    optimizers.check_installed(recipe.train.optim)


def _sentence(refusal: Refusal, choice: Choice) -> str:
    asked = " with ".join(f"{KEYS[axis]} ({choice[axis]})" for axis in refusal.when)
    return f"{asked} cannot work: {refusal.because}. {refusal.instead}"


def to_markdown() -> str:
    """Render the table: methods down, each other axis across, reasons below."""
    reasons: dict[str, int] = {}
    parts = [
        f"## {axis.replace('_', ' ').capitalize()}\n\n{_grid(axis, reasons)}"
        for axis in table().axes
        if axis != "method"
    ]
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return "\n\n".join([*parts, f"## Reasons\n\n{notes}"]) + "\n"


def _grid(axis: str, reasons: dict[str, int]) -> str:
    values, methods = table().axes[axis], table().axes["method"]
    cells = {(choice["method"], choice[axis]): _cell(choice, reasons) for choice in table().pairs(axis)}
    turned = len(values) > len(methods)
    down, across = (values, methods) if turned else (methods, values)
    lines = [f"| {axis if turned else 'method'} | " + " | ".join(f"`{value}`" for value in across) + " |"]
    lines.append("|---" * (len(across) + 1) + "|")
    for row in down:
        pairs = [(column, row) if turned else (row, column) for column in across]
        lines.append(f"| `{row}` | " + " | ".join(cells[pair] for pair in pairs) + " |")
    return "\n".join([*lines, "", *_meanings(values.items()), *_left_out(axis)])


def _left_out(axis: str) -> list[str]:
    reasons = table().left_out.get(axis, {})
    return ["", "Excluded:", "", *(f"- `{value}`: {reason}." for value, reason in reasons.items())] if reasons else []


def _cell(choice: Choice, reasons: dict[str, int]) -> str:
    if found := table().refusals(choice):
        number = reasons.setdefault(
            f"{found[0].because[0].upper()}{found[0].because[1:]}. {found[0].instead}", len(reasons) + 1
        )
        return f"no ({number})"
    needs = table().needs(choice)
    return f"needs {needs}" if needs else "yes"


def _meanings(values: Iterable[tuple[str, str]]) -> list[str]:
    return ["; ".join(f"`{value}`: {meaning}" for value, meaning in values) + "."]
