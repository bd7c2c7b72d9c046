"""Adapters on disk: which method made one, and whether it fits a base model. Weights are not read.

A folder is one of plain `peft` (`adapter_config.json`, `adapter_model.safetensors`), or of our bottleneck adapters.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from tuneline.config.existence import ADAPTER_CONFIGS
from tuneline.errors import RecipeError

ADAPTER_CONFIG, BOTTLENECK_CONFIG = ADAPTER_CONFIGS
ADAPTER_WEIGHTS, PICKLED_WEIGHTS, BOTTLENECK_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "bottleneck.safetensors",
)

PEFT_TYPES = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "VERA": "vera",
    "OFT": "oft",
    "IA3": "ia3",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning",
}
"""What peft calls a method, and `method.type` in a recipe."""

UNORDERED_KEYS = ("target_modules", "target_parameters", "exclude_modules", "feedforward_modules")
"""Keys of `adapter_config.json` that peft holds as sets, and so writes in an order that changes from run to run."""


def adapter_method(folder: Path) -> str:
    """Return the method (`method.type`) that made an adapter, ours or one of plain `peft`.

    Raises:
        RecipeError: The folder holds no adapter, or one of a method that is not among ours.
    """
    if (folder / BOTTLENECK_CONFIG).is_file():
        return "bottleneck"
    kind = str(read_config(folder).get("peft_type"))
    if kind not in PEFT_TYPES:
        raise RecipeError(
            f"load.adapters: {folder} was made by {kind}, which is none of the methods here: "
            f"{', '.join(sorted(PEFT_TYPES))}. Merge it into its base with peft and name the result as the model."
        )
    return PEFT_TYPES[kind]


def read_config(folder: Path, name: str = ADAPTER_CONFIG) -> dict[str, Any]:
    """Read the JSON file that says how an adapter is built.

    Raises:
        RecipeError: It is missing, or no JSON object.
    """
    path = folder / name
    if not path.is_file():
        whole = (folder / "config.json").is_file()
        hint = "This is a whole model: name it as the model." if whole else "Name the folder that holds the adapter."
        raise RecipeError(f"load.adapters: {folder} has no {name}. {hint}")
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise RecipeError(f"load.adapters: {path} is no JSON ({error}). Fetch the adapter again.") from error
    if not isinstance(about, dict):
        raise RecipeError(f"load.adapters: {path} holds a {type(about).__name__}, not an object. Fetch it again.")
    return about


def read_shapes(folder: Path, name: str = ADAPTER_WEIGHTS) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors without their values: on the meta device, by name.

    Raises:
        RecipeError: The file is missing, is a pickle, or is not whole.
    """
    path = folder / name
    if not path.is_file():
        pickle = (folder / PICKLED_WEIGHTS).is_file()
        hint = (
            f"It holds {PICKLED_WEIGHTS}, a pickle file, which runs code when it is read: load it where it comes from and save "
            "it again with peft."
            if pickle
            else "Fetch the adapter again."
        )
        raise RecipeError(f"load.adapters: {folder} has no {name}. {hint}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            return {key: torch.empty(part.get_shape(), device="meta") for key, part in shapes.items()}
    except SafetensorError as error:
        raise RecipeError(f"load.adapters: {path} cannot be read ({error}). Fetch the adapter again.") from error


def normalize_config(folder: Path, **changes: Any) -> None:
    """Make a folder that peft wrote the same from run to run, and take out what names this machine."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / ADAPTER_CONFIG
    about = json.loads(path.read_text()) | changes
    for key in UNORDERED_KEYS:
        if isinstance(about.get(key), list):
            about[key] = sorted(about[key])
    path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def check_shapes(folder: Path, got: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    """Compare an adapter's tensors with those that a base model would give it.

    Raises:
        RecipeError: Names or shapes differ.
    """
    odd = sorted(name for name in got.keys() & expected.keys() if got[name] != expected[name])
    if odd:
        raise RecipeError(
            f"load.adapters: {folder} was made for another base model: {odd[0]} is {list(got[odd[0]])}, and this model "
            f"needs {list(expected[odd[0]])}. Name the model that it was trained on."
        )
    if differ := sorted(got.keys() ^ expected.keys()):
        what = "is in the file and has no place in this model" if differ[0] in got else "is missing in the file"
        raise RecipeError(
            f"load.adapters: {folder} was made for another base model: {differ[0]} {what} ({len(differ)} such names). "
            "Name the model that it was trained on."
        )


def meta_copy(model: nn.Module) -> PreTrainedModel:
    """Build a model of the same config without weights, which may be changed freely."""
    assert isinstance(model, PreTrainedModel)
    with torch.device("meta"):
        return type(model)._from_config(copy.deepcopy(model.config))
