"""Base class of the methods implemented by `peft`.

Each subclass translates its recipe section into a `peft` config. The adapter name is always `default`.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import adapter_io, fp32_params
from tuneline.model.methods.base import MethodFamily, model_quantization

TASK_TYPE = "CAUSAL_LM"
ADAPTER_NAME = "default"


class PeftFamily(MethodFamily):
    """A method implemented by `peft`."""

    adapts_experts: ClassVar[bool] = False
    """Whether the method can adapt experts stored in one 3-D parameter."""

    tensor_prefix: ClassVar[str] = "lora_"
    """Prefix of the adapter's tensor names below the adapted layer."""

    ignored_keys: ClassVar[frozenset[str]] = frozenset({"type", "target_modules"})
    """Recipe keys that `check_continuation` does not compare with `adapter_config.json`."""

    def build_peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Translate the recipe into a `peft` config for this model."""
        raise NotImplementedError

    def find_targets(self, model: nn.Module, config: Any) -> targets.TargetLayers:
        """Find the layers to adapt.

        Raises:
            RecipeError: A name matches nothing, or matches experts that this method cannot adapt.
        """
        layers = targets.find_targets(model, config.target_modules)
        if layers.parameters and not self.adapts_experts:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in layers.modules}))
            raise RecipeError(
                f"method.target_modules: method {self.name} cannot adapt experts stored in one matrix, like "
                f"{layers.parameters[0]}. Set method.type: lora, or name the layers to adapt: [{names}]."
            )
        return layers

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze the base and add the adapter."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        adapted = get_peft_model(model, self.build_peft_config(model, config, total_steps, new_ids))
        fp32_params.upcast_trained_params(adapted)
        return adapted

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the adapter in the format of plain `peft`."""
        model.peft_config[
            ADAPTER_NAME
        ].base_model_name_or_path = base_name  # even if empty: None becomes the local path
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" contacts the Hub
        adapter_io.normalize_config(folder)

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Build the adapter without weights and compare names and shapes with the files."""
        self._check_method(folder)
        self.check_saved(model, folder)
        actual = {name: tensor.shape for name, tensor in adapter_io.read_shapes(folder).items()}
        try:
            expected = self.expected_shapes(model, load_peft_config(folder, trainable=False))
        except (ValueError, KeyError, AttributeError) as error:
            raise RecipeError(
                f"load.adapters: {folder} does not fit this {type(model).__name__}: {error}. Set `model` to the base "
                "model of the adapter."
            ) from error
        adapter_io.check_shapes(folder, actual, expected)

    def expected_shapes(self, model: nn.Module, peft_config: Any) -> dict[str, torch.Size]:
        """Return names and shapes of the tensors of an adapter with this config on this base."""
        meta_model = get_peft_model(adapter_io.meta_copy(model), peft_config, low_cpu_mem_usage=True)
        tensors = get_peft_model_state_dict(meta_model, save_embedding_layers=False)
        return {name: tensor.shape for name, tensor in tensors.items()}

    def check_saved(self, model: nn.Module, folder: Path) -> None:
        """Reject adapters that `peft` would attach wrongly; called before shapes are compared."""

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with `adapter_config.json`."""
        self._check_method(folder)
        saved = adapter_io.read_config(folder)
        for key, value in config.model_dump(exclude=self.ignored_keys).items():
            if key in saved and (saved[key] or value) and saved[key] != value:
                raise RecipeError(
                    f"method.{key}: the recipe says {value!r}, but the adapter to continue, {folder}, was trained "
                    f"with {saved[key]!r}. Set the adapter's value, or set use: merge and train a new adapter."
                    f"{self.mismatch_hint(saved)}"
                )
        if model is not None and hasattr(config, "target_modules"):
            self._check_same_layers(folder, config, model)

    def mismatch_hint(self, saved: dict[str, Any]) -> str:
        """Return an explanation that is appended to the error when adapter and recipe differ."""
        return ""

    def _check_same_layers(self, folder: Path, config: Any, model: nn.Module) -> None:
        layers = self.find_targets(model, config)
        expected = {*layers.modules, *(name.rpartition(".")[0] for name in layers.parameters)}
        modules = dict(model.named_modules())
        tensors = [name for name in adapter_io.read_shapes(folder) if f".{self.tensor_prefix}" in name]
        actual = {_adapted_layer(name, modules) for name in tensors}
        if differences := sorted(actual ^ expected):
            side = "only in the adapter" if differences[0] in actual else "only in the recipe"
            names = sorted({layer.rpartition(".")[2] for layer in actual})
            raise RecipeError(
                f"method.target_modules: {folder} adapts different layers than the recipe: {differences[0]} is {side}. "
                f"Set target_modules: [{', '.join(names)}]."
            )

    def _check_method(self, folder: Path) -> None:
        method = adapter_io.adapter_method(folder)
        if method != self.name:
            raise RecipeError(
                f"method.type: the recipe says {self.name!r}, but the adapter {folder} was trained with {method!r}. "
                f"Set method.type: {method}, or set use: merge and train a new adapter."
            )

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Build the adapter from its config and load its weights."""
        self.check_fits(model, folder)
        peft_config = load_peft_config(folder, trainable=trainable)
        adapted = self.build_adapter(model, peft_config)
        _load_weights(adapted, load_file(folder / adapter_io.ADAPTER_WEIGHTS, device=str(model.device)))
        if not trainable:
            adapted.requires_grad_(False)
            peft_config.inference_mode = True
        return adapted.train(trainable)

    def build_adapter(self, model: PreTrainedModel, peft_config: Any) -> Any:
        """Add an adapter whose weights are loaded next, in training mode: dtypes are then the same as in training."""
        peft_config.inference_mode = False
        adapted = get_peft_model(model, peft_config)
        fp32_params.upcast_trained_params(adapted)
        return adapted

    def merge(self, model: Any) -> PreTrainedModel:
        """Merge the adapter into the base weights, checking for NaN.

        Raises:
            RecipeError: The weights are quantized; `tuneline.model.quantize.dequantize` converts them first.
        """
        if kind := model_quantization(model.get_base_model()):
            raise RecipeError(
                f"merge_adapter: merged into {kind} weights, the adapter would be lost to rounding. Set merge_base: "
                "dequantized, which merges into the dequantized weights that the adapter was trained on."
            )
        merged = model.merge_and_unload(safe_merge=True)
        fp32_params.restore_dtype(merged)
        return merged


def _load_weights(adapted: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Copy an adapter's weights by name; fall back to `peft` where its names differ from the file's.

    `peft` applies the checkpoint conversion rules of transformers to adapter names, and loses renamed tensors.
    """
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    pointers = {tensor.data_ptr() for tensor in (*adapted.parameters(), *adapted.buffers())}
    if state.keys() != tensors.keys() or any(tensor.data_ptr() not in pointers for tensor in state.values()):
        set_peft_model_state_dict(adapted, tensors)
        return
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])


def load_peft_config(folder: Path, *, trainable: bool) -> Any:
    """Read an adapter's `PeftConfig`."""
    peft_config = PeftConfig.from_pretrained(str(folder))
    peft_config.inference_mode = not trainable
    peft_config.base_model_name_or_path = None  # peft warns if the name differs from the model's
    return peft_config


def shorten_names(names: list[str], all_names: list[str]) -> list[str]:
    """Return suffixes like `q_proj` if they match exactly these among all names, else the full names."""
    suffixes = sorted({name.rpartition(".")[2] for name in names})
    matches = {name for name in all_names if name.rpartition(".")[2] in suffixes}
    return suffixes if matches == set(names) else sorted(names)


def layer_options(model: nn.Module, layers: targets.TargetLayers) -> dict[str, Any]:
    """Return the options that all configs of adapted layers share: target names and the Conv1D layout."""
    modules = dict(model.named_modules())
    return {
        "task_type": TASK_TYPE,
        "target_modules": shorten_names(layers.modules, list(modules)),
        "fan_in_fan_out": any(isinstance(modules[name], Conv1D) for name in layers.modules),
    }


def _adapted_layer(tensor: str, modules: dict[str, nn.Module]) -> str:
    """Return the base layer that a saved tensor belongs to, or an empty string."""
    parts = [part for part in tensor.removeprefix("base_model.model.").split(".") if part != "base_layer"]
    names = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name in modules), "")
