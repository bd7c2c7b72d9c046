"""Base class and registry of fine-tuning methods: attach to a base model, save, load again, merge."""

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
"""Value of `MethodFamily.supported_quantization`: the method trains on a base of any quantization."""


class MethodFamily:
    """A fine-tuning method. The registry maps `method.type` to an instance.

    Instances are stateless: everything needed later is in the model and in the saved files. Trained weights are
    float32, whatever the dtype of the frozen weights.
    """

    name: ClassVar[str]
    """`method.type`."""

    kind: ClassVar[str] = "adapter"
    """Output of `save`: `adapter` (small files that need the base model) or `full` (a whole model)."""

    mergeable: ClassVar[bool] = True
    """Whether `merge` can fold the adapter into the base weights."""

    supports_packing: ClassVar[bool] = True
    """Whether several examples can share a row. False where each example needs its own virtual tokens."""

    supports_gradient_checkpointing: ClassVar[bool] = True
    """Whether the method works with gradient checkpointing."""

    trains_new_tokens: ClassVar[bool] = False
    """Whether the method can train the embedding rows of new tokens."""

    supported_quantization: ClassVar[frozenset[str] | None] = frozenset()
    """Quantization kinds on which training is tested; `ANY_QUANTIZATION` for all."""

    def disabling_restores_base(self, config: Any) -> bool:
        """Return whether the model with its adapter disabled is the base model; a preference reference needs this."""
        return True

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Check that this model supports the method. The model may be on the meta device: no weights are read.

        Args:
            model: Base model; may be on the meta device.
            config: The recipe's `method` section.
            total_steps: Number of optimizer steps; 0 if unknown.
            new_ids: Ids of the tokens added to the vocabulary.

        Raises:
            RecipeError: A target module does not exist, a rank or block size does not fit a layer, the quantization
                is unsupported, or the method cannot train the rows of new tokens.
        """
        kind = model_quantization(model)
        if kind and self.supported_quantization is not ANY_QUANTIZATION and kind not in self.supported_quantization:
            supported = ", ".join(sorted(self.supported_quantization)) or "none"
            raise RecipeError(
                f"method {self.name} does not train on {kind} weights; supported quantizations: {supported}. "
                "Set method.type: lora, or remove load.quantization."
            )
        if new_ids and not self.trains_new_tokens:
            raise RecipeError(
                f"load.new_tokens: method {self.name} cannot train the rows of {len(new_ids)} new tokens, so they "
                "would remain random. Set method.type: lora, adalora or full, or add no tokens."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Check the model, freeze the base weights and add the trainable ones.

        Args:
            model: Base model with its weights; may be quantized.
            config: The recipe's `method` section.
            total_steps: Number of optimizer steps, for methods with a schedule.
            new_ids: Ids of the tokens added to the vocabulary; their rows are trained.
        """
        raise NotImplementedError

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the trained weights; `attach_saved` on the same base reproduces the logits.

        Args:
            model: Result of `attach` or `attach_saved`.
            folder: Target folder. The files contain no local paths.
            base_name: Name of the base model, recorded in the files.
        """
        raise NotImplementedError

    def check_fits(self, model: nn.Module, folder: Path) -> None:
        """Check by names and shapes that an adapter belongs to this base model. No weights are read.

        Args:
            model: Base model; may be on the meta device.
            folder: Adapter folder written by `save` or by plain `peft`.

        Raises:
            RecipeError: Names or shapes differ, or files are missing or damaged.
        """
        raise NotImplementedError

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Check that an adapter can be trained further as the recipe describes.

        Args:
            folder: Adapter folder.
            config: The recipe's `method` section.
            model: Base model, may be on the meta device; if given, the adapted layers are compared too.

        Raises:
            RecipeError: Method, rank or layers differ, or the method cannot be trained further.
        """
        raise NotImplementedError

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Attach a saved adapter to a base model, for inference or, with `trainable`, for further training.

        Raises:
            RecipeError: The adapter belongs to a different base model, or cannot be trained further.
        """
        raise NotImplementedError

    def merge(self, model: Any) -> PreTrainedModel:
        """Merge the adapter into the base weights and return a plain model.

        Raises:
            RecipeError: The method cannot be merged.
        """
        raise NotImplementedError

    @contextmanager
    def disable_adapter(self, model: Any) -> Iterator[None]:
        """Disable the trained weights within the context; see `disabling_restores_base`."""
        with model.disable_adapter():
            yield

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Compute the logits of one row at the given positions.

        Args:
            model: Result of `attach` or `attach_saved`.
            inputs: `input_ids` [1, tokens], and the packing arguments of a packed row.
            keep: Positions in the row, [positions].

        Returns:
            [positions, vocabulary].
        """
        logits = model(**inputs, logits_to_keep=keep).logits[0]
        return logits if len(logits) == len(keep) else logits[keep]  # some architectures ignore logits_to_keep

    def parameter_groups(
        self, model: Any, config: Any, learning_rate: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]] | None:
        """Return optimizer parameter groups if they differ in learning rate (LoRA+), else None."""
        return None

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return a regularization term that is added to the loss (AdaLoRA), or None."""
        return None

    def after_step(self, model: Any, step: int) -> None:
        """Update the method after an optimizer step, before gradients are cleared (AdaLoRA).

        Args:
            model: Result of `attach` or `attach_saved`.
            step: Number of steps before this one: `state.global_step` in the callback `on_optimizer_step`.
        """

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Return the training state that is not in parameters, as tensors and plain values, for checkpoints."""
        return {}

    def load_extra_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the result of `extra_state`."""


families: Registry[MethodFamily] = Registry("method")


def merge_error(name: str) -> RecipeError:
    """Return the error of a method that cannot be merged."""
    return RecipeError(f"method {name} cannot be merged into the base model; keep the adapter with its base model.")


def model_quantization(model: nn.Module) -> str:
    """Return the quantization of a model's weights, like `bnb_4bit`, or an empty string.

    For a model on the meta device the config decides.
    """
    config: Any = getattr(model, "config", None)
    kind = quantization.quantization_kind(config.to_dict()) if config is not None else None
    if any(parameter.is_meta for parameter in model.parameters()):
        entry = quantization.table().get(kind or "")
        return "" if entry is not None and entry.loads == "dequantized" else kind or ""
    return kind or "" if quantize.is_quantized(model) else ""
