"""Bottleneck adapters: small networks behind attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751).

`peft` has none. Each network adds to what its part of the layer returns, before the residual is added; the last matrix
starts at zero, so the start is exactly the base. It is a child of that part and runs in a forward hook, so that
gradient checkpointing and generation see it as a piece of the layer.
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
    """Down, GELU, up, added to the input; float32, whatever comes in."""

    def __init__(self, width: int, size: int, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, device=device, dtype=torch.float32)
        self.up = nn.Linear(size, width, device=device, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input with the network's answer added, in the input's precision."""
        return x + self.up(gelu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype) if self.on else x


class BottleneckAdapters(MethodFamily):
    """Networks behind the parts of each layer."""

    name = "bottleneck"
    mergeable = False
    supported_quantization = ANY_QUANTIZATION

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse layers that lack a part that is asked for."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        _find_parts(model, config.after)

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze the base and put a network behind each part."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        _insert(model, _find_parts(model, config.after), config.bottleneck_size)
        return model

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the networks, and in a small file where they stand."""
        networks = _networks(model)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{key}": part.detach().cpu().contiguous()
            for name, network in networks.items()
            for key, part in network.state_dict().items()
        }
        save_file(tensors, folder / adapter_io.BOTTLENECK_WEIGHTS, metadata={"format": "pt"})
        size = next(iter(networks.values())).down.out_features
        about = {"after": _adapted_parts(model), "base_model_name_or_path": base_name, "bottleneck_size": size}
        (folder / adapter_io.BOTTLENECK_CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Insert the networks into a model without weights, and compare names and shapes with the files."""
        about = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        got = {name: part.shape for name, part in adapter_io.read_shapes(folder, adapter_io.BOTTLENECK_WEIGHTS).items()}
        shape = adapter_io.meta_copy(model)
        _insert(shape, _find_parts(shape, about["after"]), about["bottleneck_size"])
        expected = {
            f"{name}.{key}": part.shape
            for name, network in _networks(shape).items()
            for key, part in network.state_dict().items()
        }
        adapter_io.check_shapes(folder, got, expected)

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare size and places with the recipe."""
        kind = adapter_io.adapter_method(folder)
        if kind != self.name:
            raise RecipeError(
                f"method.type: the recipe says {self.name!r}, and the adapter {folder} was made by {kind!r}. Set "
                f"method.type: {kind}, or set use: merge and train a new adapter."
            )
        about = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        wanted = {"after": sorted(config.after), "bottleneck_size": config.bottleneck_size}
        for key, value in wanted.items():
            if about[key] != value:
                raise RecipeError(
                    f"method.{key}: the recipe says {value!r}, and the adapter to go on with, {folder}, was made with "
                    f"{about[key]!r}. Write what the adapter has."
                )

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Put the networks behind their parts, and read their weights."""
        self.check_fits(model, folder)
        about = adapter_io.read_config(folder, adapter_io.BOTTLENECK_CONFIG)
        _insert(model, _find_parts(model, about["after"]), about["bottleneck_size"])
        tensors = load_file(folder / adapter_io.BOTTLENECK_WEIGHTS, device=str(model.device))
        for name, network in _networks(model).items():
            network.load_state_dict({key: tensors[f"{name}.{key}"] for key in network.state_dict()})
            network.requires_grad_(trainable)
        return model.train(trainable)

    def merge(self, model: Any) -> PreTrainedModel:
        """Refuse: a network with a bend in it has no place in the base's matrices."""
        raise merge_error(self.name)

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Compute as the base."""
        networks = _networks(model).values()
        for network in networks:
            network.on = False
        try:
            yield
        finally:
            for network in networks:
                network.on = True


def _find_parts(model: nn.Module, after: list[str]) -> list[str]:
    """Return the full names of the parts that get a network.

    Raises:
        RecipeError: A layer lacks one.
    """
    prefix, layers = targets.decoder_layers(model)
    places: list[str] = []
    for number, layer in enumerate(layers):
        parts = targets.attention_and_mlp(layer)
        if missing := [part for part in after if part not in parts]:
            raise RecipeError(
                f"method.after: {prefix}.{number} of this {type(model).__name__} has no module for {missing[0]}; it "
                f"has {', '.join(sorted(parts)) or 'none'}. Take {missing[0]} out, or set method.type: lora."
            )
        places.extend(f"{prefix}.{number}.{parts[part]}" for part in after)
    return places


def _insert(model: nn.Module, places: list[str], size: int) -> None:
    assert isinstance(model, PreTrainedModel)
    model.requires_grad_(False)
    width = model.config.get_text_config().hidden_size
    for name in places:
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
    """Return which parts of a layer have a network."""
    _, layers = targets.decoder_layers(model)
    layer: nn.Module = layers[0]
    parts = targets.attention_and_mlp(layer)
    return sorted(part for part, name in parts.items() if hasattr(layer.get_submodule(name), CHILD_NAME))


families.register("bottleneck")(BottleneckAdapters())
