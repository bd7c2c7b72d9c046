"""Merge plain LoRA while reading the base: a layer and a shard are in memory at a time, not the model.

Two models without weights share the base's files. accelerate's hooks for offloaded weights read those of a layer when a
forward pass comes to it: for the one with the adapter as they are, for the merged one with the product of the adapter's
factors added in float32, which is what peft's `merge_and_unload` computes, bit by bit. transformers saves the second
one shard by shard through the same hooks.

It takes bases whose files hold exactly the model's tensors. All others are merged whole (`tuneline.model.merge`).
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook  # type: ignore[import-untyped]
from accelerate.utils import OffloadedWeightsLoader  # type: ignore[import-untyped]
from peft import get_peft_model
from peft.tuners import lora
from peft.utils.other import transpose
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from tuneline.errors import VerificationError
from tuneline.model import device
from tuneline.model.methods import adapter_io
from tuneline.model.methods.base import MethodFamily
from tuneline.model.methods.peft_family import ADAPTER_NAME, load_peft_config

TensorLocation = dict[str, str]
"""Where a tensor lies, as accelerate has it: `safetensors_file` and `weight_name`."""

PEFT_PREFIX = "base_model.model."
"""Before the base's names in peft's model and in an adapter's files."""


@dataclass(frozen=True)
class ShardMerge:
    """A base with its adapter, and the two merged; their weights are on disk."""

    adapted: Any
    merged: PreTrainedModel

    def save(self, folder: Path, max_shard_size: str) -> None:
        """Write the merged model as transformers does."""
        self.merged.tie_weights()  # the hooks give each layer a parameter of its own
        tensors = sorted(self.merged.state_dict().items(), key=lambda item: dot_natural_key(item[0]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            self.merged.save_pretrained(folder, state_dict=dict(tensors), max_shard_size=max_shard_size)


def prepare_shard_merge(
    bases: tuple[PreTrainedModel, PreTrainedModel],
    base: Path,
    adapter: Path,
    family: MethodFamily,
    dtype: torch.dtype,
) -> ShardMerge | None:
    """Prepare a merge; None where it is none of plain LoRA into files that hold the model's tensors as they are.

    Args:
        bases: Two models without weights, in float32; they are changed.
        base: Folder of their weights.
        adapter: Folder of the adapter.
        family: Its method.
        dtype: Type of the merged weights.

    Raises:
        RecipeError: The adapter was made for another base.
    """
    places = _tensor_locations(base, bases[0])
    if places is None or not _is_plain_lora(adapter, family):
        return None
    family.check_fits(bases[0], adapter)
    adapted = get_peft_model(bases[0], load_peft_config(adapter, trainable=False), low_cpu_mem_usage=True).eval()
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, lora.LoraLayer)}
    if not all(_is_linear(layer) for layer in layers.values()):
        return None
    _attach_offload_hooks(adapted, OffloadedWeightsLoader(index=_adapted_locations(adapted, places, adapter)))
    factors = {f"{name.removeprefix(PEFT_PREFIX)}.weight": (name, layer) for name, layer in layers.items()}
    merged = bases[1].to(dtype)
    _attach_offload_hooks(
        merged, _MergedWeights(OffloadedWeightsLoader(index=places), _LoraProducts(adapter, factors), dtype)
    )
    merged._weight_conversions = []  # names are as in the files
    merged.hf_device_map = {"": "disk"}  # transformers then asks the hooks for each tensor that it saves
    return ShardMerge(adapted, merged)


def _is_linear(layer: Any) -> bool:
    """Tell whether a layer of peft adds the product of its factors to a matrix, and nothing else."""
    return type(layer) is lora.Linear and not layer.lora_variant and not layer.lora_bias[ADAPTER_NAME]


def _attach_offload_hooks(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Have each layer read its tensors when it computes, and forget them then."""
    place = torch.device(device.device_type())
    attach_align_device_hook(model, place, offload=True, offload_buffers=True, weights_map=weights)


class _LoraProducts:
    """The products of an adapter's factors, by the name of the weight that each belongs to."""

    def __init__(self, adapter: Path, layers: Mapping[str, tuple[str, Any]]) -> None:
        self._file, self._layers = adapter / adapter_io.ADAPTER_WEIGHTS, layers

    def product(self, weight: str) -> torch.Tensor | None:
        """Return what is added to a weight, in float32, or None."""
        if weight not in self._layers:
            return None
        name, layer = self._layers[weight]
        with safe_open(self._file, framework="pt") as file:
            a, b = (file.get_tensor(f"{name}.{factor}.weight").float() for factor in ("lora_A", "lora_B"))
        return transpose(b @ a, layer.fan_in_fan_out) * layer.scaling[ADAPTER_NAME]


class _MergedWeights(Mapping[str, torch.Tensor]):
    """The merged weights, each computed when it is asked for."""

    def __init__(self, base: Mapping[str, torch.Tensor], factors: _LoraProducts, dtype: torch.dtype) -> None:
        self._base, self._factors, self._dtype = base, factors, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        weight, product = self._base[name], self._factors.product(name)
        if product is not None:
            weight = weight.float() + product
            if not weight.isfinite().all():
                raise VerificationError(
                    f"merge_adapter: {name} has values that are no numbers after the merge. Train the adapter again, "
                    "with a lower train.learning_rate."
                )
        return weight.to(self._dtype) if weight.is_floating_point() else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _is_plain_lora(adapter: Path, family: MethodFamily) -> bool:
    """Tell whether an adapter is nothing but pairs of factors."""
    if family.name != "lora":
        return False
    names = adapter_io.read_shapes(adapter)
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def _tensor_locations(folder: Path, model: PreTrainedModel) -> dict[str, TensorLocation] | None:
    """Return where each tensor of a model lies; None where the files have others, or other shapes."""
    found: dict[str, tuple[TensorLocation, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                place = {"safetensors_file": str(path), "weight_name": name}
                found[name] = place, file.get_slice(name).get_shape()
    own = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, part in own.items():
        groups.setdefault(id(part), []).append(name)
    places: dict[str, TensorLocation] = {}
    for names in groups.values():
        there = [name for name in names if name in found]
        if len(there) != 1 or list(own[there[0]].shape) != found[there[0]][1]:
            return None
        places |= dict.fromkeys(names, found[there[0]][0])
    return places if found.keys() <= places.keys() else None


def _adapted_locations(
    adapted: nn.Module, places: Mapping[str, TensorLocation], adapter: Path
) -> dict[str, TensorLocation]:
    """Return where each tensor of a base with its adapter lies."""
    found = {}
    for name in adapted.state_dict():
        if f".{ADAPTER_NAME}." in name:
            written = name.replace(f".{ADAPTER_NAME}.", ".")
            found[name] = {"safetensors_file": str(adapter / adapter_io.ADAPTER_WEIGHTS), "weight_name": written}
        else:
            found[name] = places[name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")]
    return found
