"""Quantization kinds: which can be loaded, trained and merged, on which devices, with which packages.

The table is data (`quantization.yaml`). Imports no heavy libraries; packages are only looked up.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter

from tuneline.config.base import Config
from tuneline.errors import RecipeError, did_you_mean

TABLE_FILE = Path(__file__).with_name("quantization.yaml")

Device = Literal["cpu", "cuda", "npu", "xpu", "mps"]


class QuantizationEntry(Config):
    """One quantization kind."""

    about: str
    bits: list[int]
    when: list[Literal["on_the_fly", "before"]]
    """`on_the_fly`: quantized while loading, as set in the recipe; `before`: quantized by the publisher of the
    model."""

    loads: Literal["quantized", "dequantized"] = "quantized"
    """`dequantized` weights are plain weights after loading."""

    runs_on: list[Device]
    needs: dict[str, str] = Field(default_factory=dict)
    """Module -> package to install for it."""

    cannot: dict[Literal["load", "train", "merge"], str] = Field(default_factory=dict)
    """Unsupported operation -> reason."""

    @property
    def trains(self) -> bool:
        """Whether an adapter can be trained on it."""
        return "train" not in self.cannot and "load" not in self.cannot

    @property
    def merges(self) -> bool:
        """Whether an adapter can be merged into its full-precision weights."""
        return self.trains and "merge" not in self.cannot

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [package for module, package in self.needs.items() if not _is_installed(module)]


@cache
def table() -> dict[str, QuantizationEntry]:
    """Return the quantization table."""
    return TypeAdapter(dict[str, QuantizationEntry]).validate_python(yaml.safe_load(TABLE_FILE.read_text()))


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `quantization_config` of a model's config.json; empty for unquantized weights."""
    inner = config.get("text_config") or {}
    return dict(config.get("quantization_config") or inner.get("quantization_config") or {})


def quantization_kind(config: Mapping[str, Any]) -> str | None:
    """Return the quantization kind of a model by its config.json, or None for unquantized weights."""
    settings = quantization_config(config)
    if not settings:
        return None
    method = settings.get("quant_method")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bnb_4bit" if settings.get("load_in_4bit") else "bnb_8bit"
    if method == "torchao":
        return "torchao_int8" if "8weight" in str(settings.get("quant_type")).lower() else "torchao"
    return str(getattr(method, "value", method))


def check_trainable(name: str | None, *, trains_all: bool, device: Device | None = None, key: str = "model") -> None:
    """Reject a quantization that cannot be trained, or not on this device.

    Args:
        name: Quantization kind; None for unquantized weights.
        trains_all: Whether base weights are trained, as in full and freeze tuning.
        device: Type of device to train on, if known.
        key: Recipe key for error messages: `model` for a quantized model, or `load.quantization`.

    Raises:
        RecipeError: The quantization cannot be trained. The message gives the reason and an alternative.
    """
    if name is None:
        return
    entry = _entry(name, key)
    if not entry.trains:
        reason = entry.cannot.get("load") or entry.cannot["train"]
        raise RecipeError(f"{key}: {name} cannot be trained: {reason}. {_alternative(key)}")
    if trains_all and entry.loads == "quantized":
        raise RecipeError(
            f"{key}: {name} stores the base weights in {_bits(entry)} bits without gradients, but the method trains "
            "them. Set method.type: lora or another adapter method, or use a model that is not quantized."
        )
    if device is not None and device not in entry.runs_on:
        devices = ", ".join(entry.runs_on)
        raise RecipeError(f"{key}: {name} runs on {devices}, but the device is {device}. {_alternative(key)}")
    if missing := entry.missing():
        raise RecipeError(f"{key}: {name} requires {', '.join(missing)}. Install with: pip install {_quote(missing)}.")


def check_not_quantized(name: str | None, requested: str | None) -> None:
    """Reject `load.quantization` for a model that is already quantized.

    Args:
        name: Quantization kind of the model, if it is quantized.
        requested: Quantization kind set in `load.quantization`, if any.

    Raises:
        RecipeError: Both are set.
    """
    if name is not None and requested is not None:
        raise RecipeError(
            f"load.quantization: {requested}, but the model is already quantized as {name}. Remove load.quantization, "
            "or use the model that is not quantized."
        )


def check_mergeable(name: str | None, *, key: str = "model") -> None:
    """Reject merging an adapter into a base model that cannot be dequantized.

    Raises:
        RecipeError: Merging is not supported. The message gives the reason.
    """
    if name is None:
        return
    entry = _entry(name, key)
    if not entry.merges:
        reason = entry.cannot.get("merge") or entry.cannot.get("load") or entry.cannot["train"]
        raise RecipeError(
            f"{key}: an adapter on {name} cannot be merged: {reason}. Keep the adapter separate from its base model."
        )


def to_markdown() -> str:
    """Return the table as Markdown: one row per kind, with reasons for unsupported operations."""
    lines = ["| kind | quantized | trains | merges | runs on | needs |", "|---|---|---|---|---|---|"]
    for name, entry in table().items():
        when = " or ".join("on the fly" if kind == "on_the_fly" else "before" for kind in entry.when)
        loads = ", dequantized on loading" if entry.loads == "dequantized" else ""
        reason = next(iter(entry.cannot.values()), "")
        supported = [
            "yes" if entry.trains else f"no: {reason}",
            "yes" if entry.merges else f"no: {reason}" if entry.trains else "no",
        ]
        needs = ", ".join(f"`{package}`" for package in entry.needs.values())
        cells = [f"`{name}`: {entry.about}", when + loads, *supported, ", ".join(entry.runs_on), needs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _entry(name: str, key: str) -> QuantizationEntry:
    if name not in table():
        raise RecipeError(
            f"{key}: unknown quantization {name!r}.{did_you_mean(name, table())} Known: {', '.join(sorted(table()))}. "
            f"{_alternative(key)}"
        )
    return table()[name]


def _alternative(key: str) -> str:
    if key == "load.quantization":
        names = ", ".join(name for name, entry in table().items() if "on_the_fly" in entry.when)
        return f"Set one of {names}, or remove load.quantization."
    return "Use the model that is not quantized."


def _bits(entry: QuantizationEntry) -> str:
    return " or ".join(str(bits) for bits in entry.bits)


def _quote(packages: list[str]) -> str:
    return " ".join(f"'{package}'" if re.search(r"[<>\[]", package) else package for package in packages)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is not installed
        return False
