"""Full and freeze fine-tuning: train all base weights, or those of some layers. The output is a whole model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import fp32_params, trainable_embedding_rows
from tuneline.model.methods.base import MethodFamily, families


class Full(MethodFamily):
    """Full fine-tuning: every weight is trained."""

    name: ClassVar[str] = "full"
    kind = "full"
    trains_new_tokens = True

    def disabling_restores_base(self, config: Any) -> bool:
        """Return False: the base weights are changed."""
        return False

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Make all weights trainable in their loaded dtype; a second dtype would need memory for a second model."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        return model.requires_grad_(True)

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the whole model."""
        model.save_pretrained(folder)

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Raise an error: this method does not save adapters."""
        raise self._not_an_adapter(folder)

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Raise an error: this method does not save adapters."""
        raise self._not_an_adapter(folder)

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Raise an error: this method does not save adapters."""
        raise self._not_an_adapter(folder)

    def _not_an_adapter(self, folder: Path) -> RecipeError:
        return RecipeError(
            f"load.adapters: method {self.name} trains the model itself and cannot continue the adapter {folder}. Set "
            "`model` to the trained model, or set use: merge for an adapter of another method."
        )

    def merge(self, model: Any) -> PreTrainedModel:
        """Return the model itself, converted back to one dtype."""
        fp32_params.restore_dtype(model)
        return model

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Raise an error: the base weights are changed."""
        raise RecipeError(
            f"method {self.name} changes the base weights, so there is no base model to compare with. Set method.type: "
            "lora."
        )
        yield


class Freeze(Full):
    """Freeze tuning: train some layers, or parts of them, and extra modules; all others are frozen."""

    name = "freeze"

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject layers and modules that this model does not have, and new token rows that would not be trained."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        modules = _trainable_modules(model, config)
        frozen = [name for name in trainable_embedding_rows.untrained_embeddings(model, modules) if new_ids]
        if frozen:
            raise RecipeError(
                f"load.new_tokens: the rows of {len(new_ids)} new tokens in {frozen[0]} would remain random. Add "
                f"{frozen[0].rpartition('.')[2]} to method.extra_modules."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze all but the selected modules, which are trained in float32."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        model.requires_grad_(False)
        for name in _trainable_modules(model, config):
            model.get_submodule(name).requires_grad_(True)
        fp32_params.upcast_trained_params(model)
        return model


def _trainable_modules(model: nn.Module, config: Any) -> list[str]:
    """Return the full names of the modules to train.

    Raises:
        RecipeError: `layers` exceeds the number of layers, or a name matches nothing.
    """
    prefix, layers = targets.decoder_layers(model)
    if abs(config.layers) > len(layers):
        raise RecipeError(
            f"method.layers: {config.layers}, but this model has {len(layers)} layers. Set at most {len(layers)}, or "
            "method.type: full."
        )
    numbers = range(len(layers))[-config.layers :] if config.layers > 0 else range(len(layers))[: -config.layers]
    modules = [f"{prefix}.{number}" for number in numbers]
    if config.trainable_modules != "all":
        parts = [
            trainable_embedding_rows.match_modules(
                model, config.trainable_modules, "method.trainable_modules", f"{layer}."
            )
            for layer in modules
        ]
        modules = [name for part in parts for name in part]
    outside = trainable_embedding_rows.match_modules(model, config.extra_modules, "method.extra_modules")
    return modules + [name for name in outside if not name.startswith(f"{prefix}.")]


families.register("full")(Full())
families.register("freeze")(Freeze())
