"""Merge plain LoRA shard by shard: only one layer and one shard are in memory, not the model.

Two models on the meta device share the base's files. Offload hooks of accelerate read the weights of a layer during the
forward pass: unchanged for the model with the adapter, and for the merged model with the product of the LoRA factors
added in float32, bit-identical to `merge_and_unload` of `peft`. transformers saves the merged model shard by shard
through the same hooks.

It supports bases whose files contain exactly the tensors of the model; others are merged in memory
(`tuneline.model.merge`).
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
"""Location of a tensor in the format of accelerate: `safetensors_file` and `weight_name`."""

PEFT_PREFIX = "base_model.model."
"""Prefix of the base's tensor names in models of `peft` and in adapter files."""


@dataclass(frozen=True)
class ShardMerge:
    """A base with its adapter, and the merged model; their weights stay on disk."""

    adapted: Any
    merged: PreTrainedModel

    def save(self, folder: Path, max_shard_size: str) -> None:
        """Write the merged model in the format of transformers."""
        self.merged.tie_weights()  # the hooks give each layer a separate parameter
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
    """Prepare a merge; returns None unless the adapter is plain LoRA and the files contain exactly the model's tensors.

    Args:
        bases: Two models on the meta device, in float32; they are modified.
        base: Folder of their weights.
        adapter: Folder of the adapter.
        family: Method of the adapter.
        dtype: Dtype of the merged weights.

    Raises:
        RecipeError: The adapter was trained on a different base model.
    """
    locations = _tensor_locations(base, bases[0])
    if locations is None or not _is_plain_lora(adapter, family):
        return None
    family.check_fits(bases[0], adapter)
    adapted = get_peft_model(bases[0], load_peft_config(adapter, trainable=False), low_cpu_mem_usage=True).eval()
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, lora.LoraLayer)}
    if not all(_is_linear(layer) for layer in layers.values()):
        return None
    _attach_offload_hooks(adapted, OffloadedWeightsLoader(index=_adapted_locations(adapted, locations, adapter)))
    factors = {f"{name.removeprefix(PEFT_PREFIX)}.weight": (name, layer) for name, layer in layers.items()}
    merged = bases[1].to(dtype)
    _attach_offload_hooks(
        merged, _MergedWeights(OffloadedWeightsLoader(index=locations), _LoraProducts(adapter, factors), dtype)
    )
    merged._weight_conversions = []  # tensor names match the files
    merged.hf_device_map = {"": "disk"}  # makes transformers read each tensor through the hooks when saving
    return ShardMerge(adapted, merged)


def _is_linear(layer: Any) -> bool:
    """Return whether a layer of `peft` only adds the product of its factors to a matrix."""
    return type(layer) is lora.Linear and not layer.lora_variant and not layer.lora_bias[ADAPTER_NAME]


def _attach_offload_hooks(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Make each layer load its tensors for its forward pass and release them afterwards."""
    execution_device = torch.device(device.device_type())
    attach_align_device_hook(model, execution_device, offload=True, offload_buffers=True, weights_map=weights)


class _LoraProducts:
    """Products of LoRA factors, by the name of the base weight."""

    def __init__(self, adapter: Path, layers: Mapping[str, tuple[str, Any]]) -> None:
        self._file, self._layers = adapter / adapter_io.ADAPTER_WEIGHTS, layers

    def product(self, weight: str) -> torch.Tensor | None:
        """Return the float32 update of a weight, or None if it has no adapter."""
        if weight not in self._layers:
            return None
        name, layer = self._layers[weight]
        with safe_open(self._file, framework="pt") as file:
            a, b = (file.get_tensor(f"{name}.{factor}.weight").float() for factor in ("lora_A", "lora_B"))
        return transpose(b @ a, layer.fan_in_fan_out) * layer.scaling[ADAPTER_NAME]


class _MergedWeights(Mapping[str, torch.Tensor]):
    """The merged weights, each computed on access."""

    def __init__(self, base: Mapping[str, torch.Tensor], factors: _LoraProducts, dtype: torch.dtype) -> None:
        self._base, self._factors, self._dtype = base, factors, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        weight, product = self._base[name], self._factors.product(name)
        if product is not None:
            weight = weight.float() + product
            if not weight.isfinite().all():
                raise VerificationError(
                    f"merge_adapter: {name} contains NaN or infinity after the merge. Train the adapter again with a "
                    "lower train.learning_rate."
                )
        return weight.to(self._dtype) if weight.is_floating_point() else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _is_plain_lora(adapter: Path, family: MethodFamily) -> bool:
    """Return whether an adapter consists only of LoRA factors."""
    if family.name != "lora":
        return False
    names = adapter_io.read_shapes(adapter)
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def _tensor_locations(folder: Path, model: PreTrainedModel) -> dict[str, TensorLocation] | None:
    """Return the location of each tensor of a model; None if the names or shapes in the files differ."""
    file_tensors: dict[str, tuple[TensorLocation, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                location = {"safetensors_file": str(path), "weight_name": name}
                file_tensors[name] = location, file.get_slice(name).get_shape()
    state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    locations: dict[str, TensorLocation] = {}
    for names in groups.values():
        saved_names = [name for name in names if name in file_tensors]
        if len(saved_names) != 1 or list(state[saved_names[0]].shape) != file_tensors[saved_names[0]][1]:
            return None
        locations |= dict.fromkeys(names, file_tensors[saved_names[0]][0])
    return locations if file_tensors.keys() <= locations.keys() else None


def _adapted_locations(
    adapted: nn.Module, base_locations: Mapping[str, TensorLocation], adapter: Path
) -> dict[str, TensorLocation]:
    """Return the location of each tensor of a base with its adapter."""
    locations = {}
    for name in adapted.state_dict():
        if f".{ADAPTER_NAME}." in name:
            saved_name = name.replace(f".{ADAPTER_NAME}.", ".")
            locations[name] = {"safetensors_file": str(adapter / adapter_io.ADAPTER_WEIGHTS), "weight_name": saved_name}
        else:
            locations[name] = base_locations[name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")]
    return locations
