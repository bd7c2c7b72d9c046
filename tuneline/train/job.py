"""What a training starts from, and what follows from it before any weights are read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.training.base import Optimisation
from tuneline.data.corpus import Corpus
from tuneline.errors import RecipeError
from tuneline.identity import Manifest
from tuneline.model import device, source
from tuneline.model.methods import families
from tuneline.model.methods.base import Family
from tuneline.train.checkpoint.training_state import State


@dataclass(frozen=True)
class Job:
    """What a training starts from."""

    rows: Corpus
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig
    method: Method
    config: Optimisation

    @property
    def family(self) -> Family:
        """The method's family."""
        return families[self.method.type]

    @cached_property
    def packed(self) -> bool:
        """Segments stand side by side in one forward pass: examples that share a row, or the answers of a pair."""
        if self.config.per_device_train_batch_size > 1 or not self.rows_are_laid_out:
            return True
        return any(len(lengths) > 1 for split in self.rows.splits.values() for lengths in split["lengths"])

    @property
    def rows_are_laid_out(self) -> bool:
        """Rows are tokens end to end already, not prompts and answers."""
        return "lengths" in self.rows.splits["train"].column_names

    @property
    def trains_all(self) -> bool:
        """The base's own weights change while training, so that rounding them to 16 bits would change the model.

        Frozen layers beside trained ones may be rounded on a GPU, where products of both are computed in one type.
        """
        if self.method.type == "freeze" and device.kind() != "cpu":
            return False
        return not self.family.off_is_base(self.method)

    @property
    def continued(self) -> Path | None:
        """The adapter that is trained further, if there is one."""
        return source.adapters_of(self.base_model)[-1] if "continue" in self.load.uses else None

    @cached_property
    def state(self) -> State:
        """Where the training state is kept, by what is trained."""
        return State(
            {
                "rows": self.rows.content_hash(),
                "base_model": self.base_model.content_hash(),
                "tokenizer": self.tokenizer.content_hash(),
                "load": self.load.model_dump(mode="json"),
                "method": self.method.model_dump(mode="json"),
                "train": self.config.shaping(),
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

    def refuse_shared_rows(self) -> None:
        """Refuse rows of several segments where the method puts virtual tokens in front of each.

        Raises:
            RecipeError: It does, and they have.
        """
        if not self.family.packs and self.packed:
            raise RecipeError(
                f"method {self.method.type} puts virtual tokens in front of each row, so a row holds one example. Set "
                "tokenize.packing: false and train.per_device_train_batch_size: 1; accumulate gradients instead."
            )
