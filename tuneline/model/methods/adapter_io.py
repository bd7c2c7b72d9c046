"""Adapter files on disk: method, config and tensor shapes. Weights are not read.

A folder is in the format of plain `peft` (`adapter_config.json`, `adapter_model.safetensors`) or of our bottleneck
adapters.
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
"""`peft_type` -> `method.type` of a recipe."""

UNORDERED_KEYS = ("target_modules", "target_parameters", "exclude_modules", "feedforward_modules")
"""Keys of `adapter_config.json` that `peft` stores as sets and therefore writes in varying order."""


def adapter_method(folder: Path) -> str:
    """Return the method (`method.type`) of a saved adapter.

    Raises:
        RecipeError: The folder has no adapter, or its method is unsupported.
    """
    if (folder / BOTTLENECK_CONFIG).is_file():
        return "bottleneck"
    peft_type = str(read_config(folder).get("peft_type"))
    if peft_type not in PEFT_TYPES:
        raise RecipeError(
            f"load.adapters: {folder} has the peft_type {peft_type}, which is not supported; supported: "
            f"{', '.join(sorted(PEFT_TYPES))}. Merge it into its base with peft and set `model` to the result."
        )
    return PEFT_TYPES[peft_type]


def read_config(folder: Path, name: str = ADAPTER_CONFIG) -> dict[str, Any]:
    """Read the config of an adapter.

    Raises:
        RecipeError: The file is missing or is not a JSON object.
    """
    path = folder / name
    if not path.is_file():
        is_model = (folder / "config.json").is_file()
        hint = "This is a full model: set `model` to it." if is_model else "Give the folder of the adapter."
        raise RecipeError(f"load.adapters: {folder} has no {name}. {hint}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise RecipeError(f"load.adapters: {path} is not valid JSON ({error}). Download the adapter again.") from error
    if not isinstance(config, dict):
        raise RecipeError(
            f"load.adapters: {path} contains a {type(config).__name__}, expected an object. Download the adapter again."
        )
    return config


def read_shapes(folder: Path, name: str = ADAPTER_WEIGHTS) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by name, on the meta device.

    Raises:
        RecipeError: The file is missing, is a pickle file, or is damaged.
    """
    path = folder / name
    if not path.is_file():
        is_pickle = (folder / PICKLED_WEIGHTS).is_file()
        hint = (
            f"It has {PICKLED_WEIGHTS}, a pickle file, which can run code when it is loaded: save the adapter as "
            "safetensors with peft, in an environment where you trust the file."
            if is_pickle
            else "Download the adapter again."
        )
        raise RecipeError(f"load.adapters: {folder} has no {name}. {hint}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return {key: torch.empty(tensor.get_shape(), device="meta") for key, tensor in shapes.items()}
    except SafetensorError as error:
        raise RecipeError(f"load.adapters: {path} cannot be read ({error}). Download the adapter again.") from error


def normalize_config(folder: Path, **changes: Any) -> None:
    """Make a folder written by `peft` reproducible: sort sets and remove the README, which names local paths."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text()) | changes
    for key in UNORDERED_KEYS:
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_shapes(folder: Path, actual: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    """Compare an adapter's tensors with those expected for a base model.

    Raises:
        RecipeError: Names or shapes differ.
    """
    mismatches = sorted(name for name in actual.keys() & expected.keys() if actual[name] != expected[name])
    if mismatches:
        name = mismatches[0]
        raise RecipeError(
            f"load.adapters: {folder} was trained on a different base model: {name} has the shape "
            f"{list(actual[name])}, expected {list(expected[name])}. Set `model` to the base model of the adapter."
        )
    if differences := sorted(actual.keys() ^ expected.keys()):
        where = "is not in this model" if differences[0] in actual else "is missing in the file"
        raise RecipeError(
            f"load.adapters: {folder} was trained on a different base model: {differences[0]} {where} "
            f"({len(differences)} such names). Set `model` to the base model of the adapter."
        )


def meta_copy(model: nn.Module) -> PreTrainedModel:
    """Build a model of the same config on the meta device, which callers may modify."""
    assert isinstance(model, PreTrainedModel)
    with torch.device("meta"):
        return type(model)._from_config(copy.deepcopy(model.config))
