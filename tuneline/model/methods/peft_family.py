"""What the methods of `peft` have in common: attach, save, check, attach again, merge.

Each family says how its part of the recipe becomes a `peft` config. The adapter is always called `default`.
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
    """A method that `peft` computes."""

    adapts_experts: ClassVar[bool] = False
    """It can adapt experts that are held in one 3-D parameter."""

    marker: ClassVar[str] = "lora_"
    """What the names of its tensors begin with, below the layer that is adapted."""

    ignored_keys: ClassVar[frozenset[str]] = frozenset({"type", "target_modules"})
    """Keys of the recipe that an adapter which is trained further may lack."""

    def peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Translate the recipe for this model."""
        raise NotImplementedError

    def find(self, model: nn.Module, config: Any) -> targets.TargetLayers:
        """Find the layers that get an adapter.

        Raises:
            RecipeError: A name matches nothing, or experts that this method cannot adapt.
        """
        found = targets.find_targets(model, config.target_modules)
        if found.parameters and not self.adapts_experts:
            layers = ", ".join(sorted({name.rpartition(".")[2] for name in found.modules}))
            raise RecipeError(
                f"method.target_modules: method {self.name} cannot adapt experts that are held in one matrix, like "
                f"{found.parameters[0]}. Set method.type: lora, or name the layers to adapt: [{layers}]."
            )
        return found

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze the base and add the adapter."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        adapted = get_peft_model(model, self.peft_config(model, config, total_steps, new_ids))
        fp32_params.upcast_trained_params(adapted)
        return adapted

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the adapter as plain `peft` reads it."""
        model.peft_config[
            ADAPTER_NAME
        ].base_model_name_or_path = base_name  # an empty name too: None becomes the local path
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub
        adapter_io.normalize_config(folder)

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Let peft build the adapter without weights, and compare names and shapes with the files."""
        self._check_kind(folder)
        self.check_saved(model, folder)
        got = {name: tensor.shape for name, tensor in adapter_io.read_shapes(folder).items()}
        try:
            expected = self.shapes(model, load_peft_config(folder, trainable=False))
        except (ValueError, KeyError, AttributeError) as error:
            raise RecipeError(
                f"load.adapters: {folder} does not fit this {type(model).__name__}: {error}. Name the model that it "
                "was trained on."
            ) from error
        adapter_io.check_shapes(folder, got, expected)

    def shapes(self, model: nn.Module, about: Any) -> dict[str, torch.Size]:
        """Return the names and shapes of what an adapter of this config has on this base."""
        shape = get_peft_model(adapter_io.meta_copy(model), about, low_cpu_mem_usage=True)
        tensors = get_peft_model_state_dict(shape, save_embedding_layers=False)
        return {name: tensor.shape for name, tensor in tensors.items()}

    def check_saved(self, model: nn.Module, folder: Path) -> None:
        """Refuse what peft would attach and should not; the config is read, shapes are compared after."""

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with `adapter_config.json`."""
        self._check_kind(folder)
        about = adapter_io.read_config(folder)
        for key, wanted in config.model_dump(exclude=self.ignored_keys).items():
            if key in about and (about[key] or wanted) and about[key] != wanted:
                raise RecipeError(
                    f"method.{key}: the recipe says {wanted!r}, and the adapter to go on with, {folder}, was made with "
                    f"{about[key]!r}. Write what the adapter has, or set use: merge and train a new one."
                    f"{self.hint(about)}"
                )
        if model is not None and hasattr(config, "target_modules"):
            self._same_layers(folder, config, model)

    def hint(self, about: dict[str, Any]) -> str:
        """Return what to add where an adapter differs from the recipe."""
        return ""

    def _same_layers(self, folder: Path, config: Any, model: nn.Module) -> None:
        found = self.find(model, config)
        wanted = {*found.modules, *(name.rpartition(".")[0] for name in found.parameters)}
        modules = dict(model.named_modules())
        got = {_adapted_layer(name, modules) for name in adapter_io.read_shapes(folder) if f".{self.marker}" in name}
        if differ := sorted(got ^ wanted):
            what = "the adapter has it and the recipe not" if differ[0] in got else "the recipe has it, the adapter not"
            short = sorted({layer.rpartition(".")[2] for layer in got})
            raise RecipeError(
                f"method.target_modules: {folder} adapts other layers than the recipe: {differ[0]} ({what}). "
                f"Set target_modules: [{', '.join(short)}]."
            )

    def _check_kind(self, folder: Path) -> None:
        kind = adapter_io.adapter_method(folder)
        if kind != self.name:
            raise RecipeError(
                f"method.type: the recipe says {self.name!r}, and the adapter {folder} was made by {kind!r}. Set "
                f"method.type: {kind}, or set use: merge and train a new adapter."
            )

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Build the adapter as its files say, and read its weights."""
        self.check_fits(model, folder)
        about = load_peft_config(folder, trainable=trainable)
        adapted = self.build(model, about)
        _load_weights(adapted, load_file(folder / adapter_io.ADAPTER_WEIGHTS, device=str(model.device)))
        if not trainable:
            adapted.requires_grad_(False)
            about.inference_mode = True
        return adapted.train(trainable)

    def build(self, model: PreTrainedModel, about: Any) -> Any:
        """Add an adapter whose weights are read next; it is built for training, so that float32 is held as in it."""
        about.inference_mode = False
        adapted = get_peft_model(model, about)
        fp32_params.upcast_trained_params(adapted)
        return adapted

    def merge(self, model: Any) -> PreTrainedModel:
        """Fold the adapter into the base's weights, refusing what is no number.

        Raises:
            RecipeError: The weights have few bits; `tuneline.model.quantize.dequantize` turns them into full ones.
        """
        if kind := model_quantization(model.get_base_model()):
            raise RecipeError(
                f"merge_adapter: folded into {kind} weights, the adapter would be rounded away. Set merge_base: "
                "dequantized, which folds it into the full weights that it was trained on."
            )
        merged = model.merge_and_unload(safe_merge=True)
        fp32_params.restore_dtype(merged)
        return merged


def _load_weights(adapted: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Give an adapter its weights by name, or let peft do it where names were compared and are not its own.

    peft puts an adapter's names through transformers' rules for checkpoints, and loses what those rename.
    """
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    parts = {part.data_ptr() for part in (*adapted.parameters(), *adapted.buffers())}
    if own.keys() != tensors.keys() or any(part.data_ptr() not in parts for part in own.values()):
        set_peft_model_state_dict(adapted, tensors)
        return
    with torch.no_grad():
        for name, part in own.items():
            part.copy_(tensors[name])


def load_peft_config(folder: Path, *, trainable: bool) -> Any:
    """Read an adapter's config as peft has it."""
    about = PeftConfig.from_pretrained(str(folder))
    about.inference_mode = not trainable
    about.base_model_name_or_path = None  # peft warns where another name stands there than the model's
    return about


def shorten_names(names: list[str], universe: list[str]) -> list[str]:
    """Return the ends of names, like `q_proj`, where they match these among all names and no others; else the names."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    matched = {name for name in universe if name.rpartition(".")[2] in ends}
    return ends if matched == set(names) else sorted(names)


def layer_options(model: nn.Module, found: targets.TargetLayers) -> dict[str, Any]:
    """Return what every config that adapts layers has: their names, and how Conv1D holds its matrix."""
    modules = dict(model.named_modules())
    return {
        "task_type": TASK_TYPE,
        "target_modules": shorten_names(found.modules, list(modules)),
        "fan_in_fan_out": any(isinstance(modules[name], Conv1D) for name in found.modules),
    }


def _adapted_layer(tensor: str, modules: dict[str, nn.Module]) -> str:
    """Return the layer of the base that a saved tensor belongs to, or an empty string."""
    parts = [part for part in tensor.removeprefix("base_model.model.").split(".") if part != "base_layer"]
    names = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name in modules), "")
