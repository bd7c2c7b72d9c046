"""IA3: trained vectors rescale the inputs or outputs of layers (Liu et al. 2022, arXiv:2205.05638)."""

from pathlib import Path
from typing import Any, ClassVar

from peft import IA3Config
from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import adapter_io
from tuneline.model.methods.base import families
from tuneline.model.methods.peft_family import PeftFamily, layer_options


class Ia3(PeftFamily):
    """One vector per layer."""

    name = "ia3"
    tensor_prefix = "ia3_l"
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})
    ignored_keys: ClassVar[frozenset[str]] = PeftFamily.ignored_keys | {"feedforward_modules"}

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject feed-forward layers that are not among the targets."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        self._feedforward(model, config, self.find_targets(model, config))

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with the files; feed-forward layers by the last part of their names."""
        super().check_continuation(folder, config, model)
        saved = {name.rpartition(".")[2] for name in adapter_io.read_config(folder).get("feedforward_modules") or []}
        if saved != {name.rpartition(".")[2] for name in config.feedforward_modules}:
            raise RecipeError(
                f"method.feedforward_modules: the recipe says {config.feedforward_modules}, but the adapter {folder} "
                f"was trained with {sorted(saved)}. Set the adapter's value."
            )

    def _feedforward(self, model: nn.Module, config: Any, layers: targets.TargetLayers) -> list[str]:
        names = targets.find_targets(model, config.feedforward_modules).modules if config.feedforward_modules else []
        if missing := [name for name in names if name not in layers.modules]:
            raise RecipeError(
                f"method.feedforward_modules: {missing[0]} is not among method.target_modules. Add it there."
            )
        return names

    def build_peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> IA3Config:
        """Translate the recipe with full names, so that `peft` finds the feed-forward layers among the targets."""
        layers = self.find_targets(model, config)
        options = layer_options(model, layers) | {"target_modules": layers.modules}
        return IA3Config(feedforward_modules=self._feedforward(model, config, layers), **options)


families.register("ia3")(Ia3())
