"""Ways to hold weights in fewer bits: which can be loaded, trained and merged, on which device, with what installed.

A table (`quantization.yaml`) and the questions asked of it. Nothing heavy is imported: packages are only looked up.
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
    """One way to hold weights in fewer bits."""

    about: str
    bits: list[int]
    made: list[Literal["on_the_fly", "before"]]
    """`on_the_fly` by the recipe, while loading; or `before`, by who published the model."""

    loads: Literal["quantized", "dequantized"] = "quantized"
    """`dequantized` weights are plain ones from loading on."""

    runs_on: list[Device]
    needs: dict[str, str] = Field(default_factory=dict)
    """Module -> what to install for it."""

    cannot: dict[Literal["load", "train", "merge"], str] = Field(default_factory=dict)
    """What it cannot do, and why."""

    @property
    def trains(self) -> bool:
        """An adapter can be trained on it."""
        return "train" not in self.cannot and "load" not in self.cannot

    @property
    def merges(self) -> bool:
        """An adapter can be folded into its full weights."""
        return self.trains and "merge" not in self.cannot

    def missing(self) -> list[str]:
        """Return what must be installed."""
        return [package for module, package in self.needs.items() if not _is_installed(module)]


@cache
def table() -> dict[str, QuantizationEntry]:
    """Read the table."""
    return TypeAdapter(dict[str, QuantizationEntry]).validate_python(yaml.safe_load(TABLE_FILE.read_text()))


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's config.json says of its quantization; nothing for plain weights."""
    inner = config.get("text_config") or {}
    return dict(config.get("quantization_config") or inner.get("quantization_config") or {})


def quantization_kind(config: Mapping[str, Any]) -> str | None:
    """Return how a model comes quantized, by its config.json: a name of the table where it has one; None for plain."""
    told = quantization_config(config)
    if not told:
        return None
    method = told.get("quant_method")
    if told.get("load_in_4bit") or told.get("load_in_8bit"):
        return "bnb_4bit" if told.get("load_in_4bit") else "bnb_8bit"
    if method == "torchao":
        return "torchao_int8" if "8weight" in str(told.get("quant_type")).lower() else "torchao"
    return str(getattr(method, "value", method))


def check_trainable(name: str | None, *, trains_all: bool, device: Device | None = None, key: str = "model") -> None:
    """Refuse a quantization that cannot be trained, or not here.

    Args:
        name: Of the table; None for weights that are not quantized.
        trains_all: The base's own weights are trained, all or some: full and freeze tuning.
        device: Kind of device to train on, where it is known.
        key: The recipe's key to name: `model` for one that comes quantized, or `load.quantization`.

    Raises:
        RecipeError: What cannot be done, why, and what to do instead.
    """
    if name is None:
        return
    entry = _entry(name, key)
    if not entry.trains:
        why = entry.cannot.get("load") or entry.cannot["train"]
        raise RecipeError(f"{key}: {name} cannot be trained: {why}. {_instead(key)}")
    if trains_all and entry.loads == "quantized":
        raise RecipeError(
            f"{key}: {name} holds the base's weights in {_bits(entry)} bits, which take no gradients, and the method "
            "trains them. Set method.type: lora, or another adapter, or start from weights that are not quantized."
        )
    if device is not None and device not in entry.runs_on:
        places = ", ".join(entry.runs_on)
        raise RecipeError(f"{key}: {name} runs on {places}, and the device is {device}. {_instead(key)}")
    if missing := entry.missing():
        raise RecipeError(f"{key}: {name} needs {', '.join(missing)}. Install: pip install {_quoted(missing)}.")


def check_not_quantized(name: str | None, asked: str | None) -> None:
    """Refuse to quantize a model that comes quantized.

    Args:
        name: How the model comes, if it does.
        asked: What `load.quantization` asks for, if anything.

    Raises:
        RecipeError: Both.
    """
    if name is not None and asked is not None:
        raise RecipeError(
            f"load.quantization: {asked}, and the model comes quantized as {name}. Leave load.quantization out, or "
            "take the model that is not quantized."
        )


def check_mergeable(name: str | None, *, key: str = "model") -> None:
    """Refuse to fold an adapter into a base that has no way back to full weights.

    Raises:
        RecipeError: Why it has none.
    """
    if name is None:
        return
    entry = _entry(name, key)
    if not entry.merges:
        why = entry.cannot.get("merge") or entry.cannot.get("load") or entry.cannot["train"]
        raise RecipeError(f"{key}: an adapter on {name} cannot be merged: {why}. Keep the adapter beside its base.")


def to_markdown() -> str:
    """Render the table for readers: a line for each kind, and why what cannot be done cannot."""
    lines = ["| kind | quantized | trains | merges | runs on | needs |", "|---|---|---|---|---|---|"]
    for name, entry in table().items():
        made = " or ".join("on the fly" if way == "on_the_fly" else "before" for way in entry.made)
        loads = ", dequantized on loading" if entry.loads == "dequantized" else ""
        why = next(iter(entry.cannot.values()), "")
        able = [
            "yes" if entry.trains else f"no: {why}",
            "yes" if entry.merges else f"no: {why}" if entry.trains else "no",
        ]
        needs = ", ".join(f"`{package}`" for package in entry.needs.values())
        cells = [f"`{name}`: {entry.about}", made + loads, *able, ", ".join(entry.runs_on), needs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _entry(name: str, key: str) -> QuantizationEntry:
    if name not in table():
        raise RecipeError(
            f"{key}: the quantization {name!r} is unknown.{did_you_mean(name, table())} Known: "
            f"{', '.join(sorted(table()))}. {_instead(key)}"
        )
    return table()[name]


def _instead(key: str) -> str:
    if key == "load.quantization":
        able = ", ".join(name for name, entry in table().items() if "on_the_fly" in entry.made)
        return f"Take one of {able}, or leave load.quantization out."
    return "Take the model that is not quantized."


def _bits(entry: QuantizationEntry) -> str:
    return " or ".join(str(bits) for bits in entry.bits)


def _quoted(packages: list[str]) -> str:
    return " ".join(f"'{package}'" if re.search(r"[<>\[]", package) else package for package in packages)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
