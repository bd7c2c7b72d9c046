"""Bottleneck adapters: small networks after attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751).

`peft` does not implement them. Each network adds to the output of its part of the layer, before the residual is added;
its last matrix is initialized to zero, so training starts exactly at the base model. The network is a child of that
part and runs in a forward hook, so gradient checkpointing and generation treat it as part of the layer.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import adapter_io
from tuneline.model.methods.base import ANY_QUANTIZATION, MethodFamily, families, merge_error

CHILD_NAME = "bottleneck"


class Bottleneck(nn.Module):
    """Down-projection, GELU, up-projection and residual sum, computed in float32."""

    def __init__(self, width: int, size: int, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, device=device, dtype=torch.float32)
        self.up = nn.Linear(size, width, device=device, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus the output of the network, in the dtype of the input."""
        return x + self.up(gelu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype) if self.enabled else x


class BottleneckAdapters(MethodFamily):
    """Bottleneck networks after the parts of each layer."""

    name = "bottleneck"
    mergeable = False
    supported_quantization = ANY_QUANTIZATION

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject layers without one of the parts in `method.after`."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        _find_parts(model, config.after)

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze the base and add a network after each part."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        _insert(model, _find_parts(model, config.after), config.bottleneck_size)
        return model

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the networks and a config with their positions."""
        networks = _networks(model)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{key}": tensor.detach().cpu().contiguous()
            for name, network in networks.items()
            for key, tensor in network.state_dict().items()
        }
        save_file(tensors, folder / adapter_io.BOTTLENECK_WEIGHTS, metadata={"format": "pt"})
        size = next(iter(networks.values())).down.out_features
        saved = {"after": _adapted_parts(model), "base_model_name_or_path": base_name, "bottleneck_size": size}
        (folder / adapter_io.BOTTLENECK_CONFIG).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Insert the networks into a model on the meta device and compare names and shapes with the files."""
        saved = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        tensors = adapter_io.read_shapes(folder, adapter_io.BOTTLENECK_WEIGHTS)
        meta_model = adapter_io.meta_copy(model)
        _insert(meta_model, _find_parts(meta_model, saved["after"]), saved["bottleneck_size"])
        expected = {
            f"{name}.{key}": tensor.shape
            for name, network in _networks(meta_model).items()
            for key, tensor in network.state_dict().items()
        }
        adapter_io.check_shapes(folder, {name: tensor.shape for name, tensor in tensors.items()}, expected)

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare size and positions with the recipe."""
        method = adapter_io.adapter_method(folder)
        if method != self.name:
            raise RecipeError(
                f"method.type: the recipe says {self.name!r}, but the adapter {folder} was trained with {method!r}. "
                f"Set method.type: {method}, or set use: merge and train a new adapter."
            )
        saved = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        values = {"after": sorted(config.after), "bottleneck_size": config.bottleneck_size}
        for key, value in values.items():
            if saved[key] != value:
                raise RecipeError(
                    f"method.{key}: the recipe says {value!r}, but the adapter to continue, {folder}, was trained "
                    f"with {saved[key]!r}. Set the adapter's value."
                )

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Add the networks after their parts and load their weights."""
        self.check_fits(model, folder)
        saved = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        _insert(model, _find_parts(model, saved["after"]), saved["bottleneck_size"])
        tensors = load_file(folder / adapter_io.BOTTLENECK_WEIGHTS, device=str(model.device))
        for name, network in _networks(model).items():
            network.load_state_dict({key: tensors[f"{name}.{key}"] for key in network.state_dict()})
            network.requires_grad_(trainable)
        return model.train(trainable)

    def merge(self, model: Any) -> PreTrainedModel:
        """Raise an error: a nonlinear network cannot be merged into weight matrices."""
        raise merge_error(self.name)

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Disable all networks within the context."""
        networks = _networks(model).values()
        for network in networks:
            network.enabled = False
        try:
            yield
        finally:
            for network in networks:
                network.enabled = True


def _find_parts(model: nn.Module, after: list[str]) -> list[str]:
    """Return the full names of the parts after which a network is added.

    Raises:
        RecipeError: A layer has no such part.
    """
    prefix, layers = targets.decoder_layers(model)
    names: list[str] = []
    for number, layer in enumerate(layers):
        parts = targets.attention_and_mlp(layer)
        if missing := [part for part in after if part not in parts]:
            raise RecipeError(
                f"method.after: {prefix}.{number} of this {type(model).__name__} has no module for {missing[0]}; it "
                f"has {', '.join(sorted(parts)) or 'none'}. Remove {missing[0]}, or set method.type: lora."
            )
        names.extend(f"{prefix}.{number}.{parts[part]}" for part in after)
    return names


def _insert(model: nn.Module, part_names: list[str], size: int) -> None:
    assert isinstance(model, PreTrainedModel)
    model.requires_grad_(False)
    width = model.config.get_text_config().hidden_size
    for name in part_names:
        part = model.get_submodule(name)
        network = Bottleneck(width, size, next(part.parameters()).device)
        part.add_module(CHILD_NAME, network)
        part.register_forward_hook(_forward_hook)


def _forward_hook(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    network = part.get_submodule(CHILD_NAME)
    return (network(output[0]), *output[1:]) if isinstance(output, tuple) else network(output)


def _networks(model: nn.Module) -> dict[str, Bottleneck]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}


def _adapted_parts(model: nn.Module) -> list[str]:
    """Return the parts of a layer that have a network."""
    _, layers = targets.decoder_layers(model)
    layer: nn.Module = layers[0]
    parts = targets.attention_and_mlp(layer)
    return sorted(part for part, name in parts.items() if hasattr(layer.get_submodule(name), CHILD_NAME))


families.register("bottleneck")(BottleneckAdapters())
