"""Training the base's own weights: all of them, or those of some layers. What is saved is a whole model."""

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
    """Every weight."""

    name: ClassVar[str] = "full"
    kind = "full"
    trains_new_tokens = True

    def disabling_restores_base(self, config: Any) -> bool:
        """The base is gone."""
        return False

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Let everything be trained, in the precision that it was read in: with two, the model would lie here twice."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        return model.requires_grad_(True)

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the whole model."""
        model.save_pretrained(folder)

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Refuse: what this method saves is no adapter."""
        raise self._no_adapter(folder)

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Refuse: what this method saves is no adapter."""
        raise self._no_adapter(folder)

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Refuse: what this method saves is no adapter."""
        raise self._no_adapter(folder)

    def _no_adapter(self, folder: Path) -> RecipeError:
        return RecipeError(
            f"load.adapters: method {self.name} trains the model itself, so {folder} is no adapter to go on with. Name "
            "the trained model as the model, or set use: merge for an adapter of another method."
        )

    def merge(self, model: Any) -> PreTrainedModel:
        """Return the model itself, in one precision again."""
        fp32_params.restore_dtype(model)
        return model

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Refuse: the base's weights have changed."""
        raise RecipeError(f"method {self.name} has no base to compare with: its weights are the base's. Set lora.")
        yield


class Freeze(Full):
    """Some layers, or parts of them, and modules outside; the others stay as they are."""

    name = "freeze"

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse layers and modules that this model does not have, and new rows that would not be trained."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        chosen = _trainable_modules(model, config)
        untrained = [name for name in trainable_embedding_rows.untrained_embeddings(model, chosen) if new_ids]
        if untrained:
            raise RecipeError(
                f"load.new_tokens: the rows of {len(new_ids)} new tokens in {untrained[0]} would stay noise. Add "
                f"{untrained[0].rpartition('.')[2]} to method.extra_modules."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Freeze all but the chosen modules, which are held in float32."""
        self.check(model, config, total_steps=total_steps, new_ids=new_ids)
        model.requires_grad_(False)
        for name in _trainable_modules(model, config):
            model.get_submodule(name).requires_grad_(True)
        fp32_params.upcast_trained_params(model)
        return model


def _trainable_modules(model: nn.Module, config: Any) -> list[str]:
    """Return the full names of the modules to train.

    Raises:
        RecipeError: More layers than there are, or a name that matches nothing.
    """
    prefix, layers = targets.decoder_layers(model)
    if abs(config.layers) > len(layers):
        raise RecipeError(
            f"method.layers: {config.layers}, and this model has {len(layers)} layers. Set at most {len(layers)}, or "
            "method.type: full."
        )
    numbers = range(len(layers))[-config.layers :] if config.layers > 0 else range(len(layers))[: -config.layers]
    chosen = [f"{prefix}.{number}" for number in numbers]
    if config.trainable_modules != "all":
        parts = [
            trainable_embedding_rows.match_modules(
                model, config.trainable_modules, "method.trainable_modules", f"{layer}."
            )
            for layer in chosen
        ]
        chosen = [name for part in parts for name in part]
    outside = trainable_embedding_rows.match_modules(model, config.extra_modules, "method.extra_modules")
    return chosen + [name for name in outside if not name.startswith(f"{prefix}.")]


families.register("full")(Full())
families.register("freeze")(Freeze())
