"""What a method of training is: attach to a base model, save, attach again, merge. One registry, small families."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneline.config.validation import quantization
from tuneline.errors import RecipeError
from tuneline.model import quantize
from tuneline.registry import Registry

ANY_QUANTIZATION = None
"""`Family.quantized`: the method trains beside frozen weights of any kind."""


class MethodFamily:
    """A way to make a base model trainable; entries of the registry are instances, named by `method.type`.

    A family holds no state: everything it needs later is in the model and in the files it saved. What it trains beside
    frozen weights is held in float32, whatever those are held in.
    """

    name: ClassVar[str]
    """`method.type`."""

    kind: ClassVar[str] = "adapter"
    """What `save` leaves: `adapter` (small, beside the base) or `full` (a whole model)."""

    mergeable: ClassVar[bool] = True
    """`merge` can fold it into the base."""

    supports_packing: ClassVar[bool] = True
    """Examples may share a row; not where each needs virtual tokens of its own in front."""

    supports_gradient_checkpointing: ClassVar[bool] = True
    """It works under gradient checkpointing."""

    trains_new_tokens: ClassVar[bool] = False
    """It can train the rows of tokens that were added to the vocabulary."""

    supported_quantization: ClassVar[frozenset[str] | None] = frozenset()
    """Kinds of quantized bases that it was seen to train on; `ANY_WEIGHTS` for all."""

    def disabling_restores_base(self, config: Any) -> bool:
        """Tell whether the model with its adapter switched off is the base model, as a preference stage needs it."""
        return True

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse what this model cannot do; the model may be on the meta device, so nothing reads weights.

        Args:
            model: Base model, or its shape.
            config: The method's part of the recipe.
            total_steps: Optimizer steps to take; 0 where it is not known yet.
            new_ids: Token ids that were added to the vocabulary.

        Raises:
            RecipeError: A target that does not exist, a rank above the matrix, a size that does not divide, a kind of
                quantized base that this method does not train on, new rows that it cannot train.
        """
        kind = model_quantization(model)
        if kind and self.supported_quantization is not ANY_QUANTIZATION and kind not in self.supported_quantization:
            known = ", ".join(sorted(self.supported_quantization)) or "none"
            raise RecipeError(
                f"method {self.name} does not train on {kind} weights; quantized bases that it trains on: {known}. "
                "Set method.type: lora, or leave load.quantization out."
            )
        if new_ids and not self.trains_new_tokens:
            raise RecipeError(
                f"load.new_tokens: method {self.name} cannot train the rows of {len(new_ids)} new tokens, so they "
                "would stay noise. Set method.type: lora, adalora or full, or add no tokens."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Check, freeze what is not trained, and add what is.

        Args:
            model: Base model, weights loaded, possibly quantized.
            config: The method's part of the recipe.
            total_steps: Optimizer steps that the training will take, for methods with a schedule.
            new_ids: Token ids that were added to the vocabulary, whose rows must be trained.
        """
        raise NotImplementedError

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write what was trained, so that `attach_saved` on the same base gives equal logits.

        Args:
            model: What `attach` or `attach_saved` returned.
            folder: Where to; nothing in the files names this machine.
            base_name: Name of the base model, for readers of the files.
        """
        raise NotImplementedError

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Refuse saved files that were made for another base; shapes and names are read, weights are not.

        Args:
            model: Base model, or its shape.
            folder: What `save` wrote, or a folder of plain `peft`.

        Raises:
            RecipeError: Names or shapes differ, or the files are not whole.
        """
        raise NotImplementedError

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Refuse to go on with an adapter that is not what the recipe describes.

        Args:
            folder: The adapter.
            config: The method's part of the recipe.
            model: Base model, or its shape; with it, the adapted layers are compared too.

        Raises:
            RecipeError: Another method, another rank, other layers, or a method that cannot be trained further.
        """
        raise NotImplementedError

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Attach what `save` wrote to a base model; `trainable` goes on training it.

        Raises:
            RecipeError: It was made for another base, or cannot be trained further.
        """
        raise NotImplementedError

    def merge(self, model: Any) -> PreTrainedModel:
        """Fold into the base and return a plain model.

        Raises:
            RecipeError: The method cannot be merged.
        """
        raise NotImplementedError

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Compute without what was trained; that is the base model where `off_is_base`."""
        with model.disable_adapter():
            yield

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Compute logits at some positions of one row.

        Args:
            model: What `attach` or `attach_saved` returned.
            inputs: `input_ids` [1, tokens], and what a packed row needs.
            keep: Positions in the row [positions].

        Returns:
            [positions, vocabulary].
        """
        logits = model(**inputs, logits_to_keep=keep).logits[0]
        return logits if len(logits) == len(keep) else logits[keep]  # a few architectures compute all of them

    def parameter_groups(
        self, model: Any, config: Any, learning_rate: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]] | None:
        """Return the optimizer's groups where they differ (LoRA+), else None."""
        return None

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return what is added to the loss of an optimizer step (AdaLoRA), or None."""
        return None

    def after_step(self, model: Any, step: int) -> None:
        """Work between an optimizer step and the clearing of gradients (AdaLoRA).

        Args:
            model: What `attach` or `attach_saved` returned.
            step: Steps taken before this one, which is `state.global_step` in a callback's `on_optimizer_step`.
        """

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Return what training changes beside parameters, as tensors and plain values; a checkpoint keeps it."""
        return {}

    def load_extra_state(self, model: Any, kept: dict[str, Any]) -> None:
        """Put back what `beside` returned."""


families: Registry[MethodFamily] = Registry("method")


def merge_error(name: str) -> RecipeError:
    """Say that a method has no merged form."""
    return RecipeError(f"method {name} cannot be folded into the base model; the adapter is kept beside it.")


def model_quantization(model: nn.Module) -> str:
    """Return how a model's weights are quantized, like `bnb_4bit`, or nothing; a shape says it by its config."""
    config: Any = getattr(model, "config", None)
    kind = quantization.quantization_kind(config.to_dict()) if config is not None else None
    if any(parameter.is_meta for parameter in model.parameters()):
        entry = quantization.table().get(kind or "")
        return "" if entry is not None and entry.loads == "dequantized" else kind or ""
    return kind or "" if quantize.is_quantized(model) else ""
