"""What a training starts from, and what follows from it before any weights are read."""

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
    """What a training starts from."""

    rows: Corpus
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig
    method: Method
    config: TrainingConfig

    @property
    def family(self) -> MethodFamily:
        """The method's family."""
        return families[self.method.type]

    @cached_property
    def packed(self) -> bool:
        """Segments stand side by side in one forward pass: examples that share a row, or the answers of a pair."""
        if self.config.per_device_train_batch_size > 1 or not self.has_segment_lengths:
            return True
        return any(len(lengths) > 1 for split in self.rows.splits.values() for lengths in split["lengths"])

    @property
    def has_segment_lengths(self) -> bool:
        """Rows are tokens end to end already, not prompts and answers."""
        return "lengths" in self.rows.splits["train"].column_names

    @property
    def trains_base_weights(self) -> bool:
        """The base's own weights change while training, so that rounding them to 16 bits would change the model.

        Frozen layers beside trained ones may be rounded on a GPU, where products of both are computed in one type.
        """
        if self.method.type == "freeze" and device.device_type() != "cpu":
            return False
        return not self.family.disabling_restores_base(self.method)

    @property
    def continued_adapter(self) -> Path | None:
        """The adapter that is trained further, if there is one."""
        return source.adapter_folders(self.base_model)[-1] if "continue" in self.load.uses else None

    @cached_property
    def state(self) -> TrainingState:
        """Where the training state is kept, by what is trained."""
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
        """Optimizer steps, counted as transformers' Trainer does."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        passes = -(-len(self.rows.splits["train"]) // self.config.per_device_train_batch_size)
        per_epoch = max(-(-passes // self.config.gradient_accumulation_steps), 1)
        return int(-(-per_epoch * self.config.num_train_epochs // 1))

    def check_packing_support(self) -> None:
        """Refuse rows of several segments where the method puts virtual tokens in front of each.

        Raises:
            RecipeError: It does, and they have.
        """
        if not self.family.supports_packing and self.packed:
            raise RecipeError(
                f"method {self.method.type} puts virtual tokens in front of each row, so a row holds one example. Set "
                "tokenize.packing: false and train.per_device_train_batch_size: 1; accumulate gradients instead."
            )
