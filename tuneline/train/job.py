"""The inputs of a training, and the properties derived from them before any weights are read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.training.base import TrainingConfig
from tuneline.data.corpus import Corpus
from tuneline.errors import RecipeError
from tuneline.identity import Manifest
from tuneline.model import device, source
from tuneline.model.methods import families
from tuneline.model.methods.base import MethodFamily
from tuneline.train.checkpoint.training_state import TrainingState


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of a training."""

    rows: Corpus
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig
    method: Method
    config: TrainingConfig

    @property
    def family(self) -> MethodFamily:
        """The family of the training method."""
        return families[self.method.type]

    @cached_property
    def packed(self) -> bool:
        """Whether a forward pass contains several segments: packed examples, or the answers of a pair."""
        if self.config.per_device_train_batch_size > 1 or not self.has_segment_lengths:
            return True
        return any(len(lengths) > 1 for split in self.rows.splits.values() for lengths in split["lengths"])

    @property
    def has_segment_lengths(self) -> bool:
        """Whether rows are concatenated tokens with segment lengths, instead of separate prompts and answers."""
        return "lengths" in self.rows.splits["train"].column_names

    @property
    def trains_base_weights(self) -> bool:
        """Whether training changes weights of the base model, so that rounding them to 16 bits would change the model.

        With `freeze`, frozen layers may be rounded on a GPU, where autocast computes frozen and trained layers in one
        dtype.
        """
        if self.method.type == "freeze" and device.device_type() != "cpu":
            return False
        return not self.family.disabling_restores_base(self.method)

    @property
    def continued_adapter(self) -> Path | None:
        """The folder of the adapter that is trained further, or None."""
        return source.adapter_folders(self.base_model)[-1] if "continue" in self.load.uses else None

    @cached_property
    def state(self) -> TrainingState:
        """The saved state of this training, identified by its inputs."""
        return TrainingState(
            {
                "rows": self.rows.content_hash(),
                "base_model": self.base_model.content_hash(),
                "tokenizer": self.tokenizer.content_hash(),
                "load": self.load.model_dump(mode="json"),
                "method": self.method.model_dump(mode="json"),
                "train": self.config.weight_affecting_fields(),
            }
        )

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps, computed as in transformers' Trainer."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        num_batches = -(-len(self.rows.splits["train"]) // self.config.per_device_train_batch_size)
        per_epoch = max(-(-num_batches // self.config.gradient_accumulation_steps), 1)
        return int(-(-per_epoch * self.config.num_train_epochs // 1))

    def check_packing_support(self) -> None:
        """Check that the method supports several segments per row.

        Raises:
            RecipeError: The method prepends virtual tokens to each row, and rows contain several segments.
        """
        if not self.family.supports_packing and self.packed:
            raise RecipeError(
                f"method {self.method.type} prepends virtual tokens to each row, so each row must hold one example. "
                "Set tokenize.packing: false and train.per_device_train_batch_size: 1; use gradient accumulation."
            )
