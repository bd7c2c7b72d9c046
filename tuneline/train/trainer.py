"""A thin `transformers.Trainer`: logits at trained positions only, and a loss that weighs tokens, not rows.

The loss is the sum over trained tokens divided by their number in the whole optimizer step, so that accumulation and
batch size do not matter. What a method needs beside (groups of the optimizer, a penalty, work after a step) its family
says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.config.method import Method
from tuneline.config.optimizers import TRAITS
from tuneline.config.train import TrainConfig
from tuneline.data.schema import IGNORE_INDEX
from tuneline.model.methods.base import Family
from tuneline.model.precision import Precision
from tuneline.train import optimizers
from tuneline.train.noise import Noise
from tuneline.train.resumable import Resumable

if TYPE_CHECKING:
    from tuneline.train.levers.apply import Levers


class SFTTrainer(Resumable):
    """Cross entropy at trained positions, weighted by tokens."""

    optimizer: Any
    levers: "Levers | None" = None
    """What makes a step fast; nothing where it is not set."""

    def __init__(self, family: Family, method: Method, noise: Noise | None = None, **options: Any) -> None:
        self.family, self.method, self.noise = family, method, noise
        self.history = []
        with _as_adapted(options["model"], adapted=family.kind == "adapter"):
            super().__init__(**options)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        self.tokens_seen += inputs["labels"].numel()
        if self.noise:
            self.noise.of_row(inputs["cu_seq_lens_q"])
        total, count = self.levers.summed_loss(inputs) if self.levers else summed_loss(self.family, model, inputs)
        loss = total / (num_items_in_batch if num_items_in_batch is not None else count)
        penalty = self.family.penalty(model)
        return loss if penalty is None else loss + penalty / self.args.gradient_accumulation_steps

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer, in the groups that the method asks for."""
        groups = self.family.parameter_groups(self.model, self.method, self.args.learning_rate, self.args.weight_decay)
        if self.optimizer is None:
            self.names = frozenset(self._trained())
            self.optimizer = optimizers.make(self, groups)
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Tell no norm where the gradients are gone by then."""
        in_backward = TRAITS[self.args.optimizer_name].in_backward
        return None if in_backward else super()._get_grad_norm(model, grad_norm=grad_norm)


@contextmanager
def _as_adapted(model: Any, *, adapted: bool) -> Iterator[None]:
    """Let transformers know of adapters that are not peft's: it refuses to train a quantized model without any."""
    marks = vars(model)
    unknown = adapted and "_hf_peft_config_loaded" not in marks
    if unknown:
        marks["_hf_peft_config_loaded"] = True
    try:
        yield
    finally:
        if unknown:
            del marks["_hf_peft_config_loaded"]


class AfterStep(TrainerCallback):
    """Let the method work between an optimizer step and the clearing of gradients."""

    def __init__(self, family: Family, model: Any) -> None:
        self._family, self._model = family, model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._family.after_step(self._model, state.global_step)


def summed_loss(family: Family, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Return the cross entropy (nats) summed over the trained tokens of a row, and their number."""
    labels = inputs["labels"][0]
    keep = (labels[1:] != IGNORE_INDEX).nonzero()[:, 0]
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    logits = family.logits(model, rest, keep)
    return cross_entropy(logits.float(), labels[keep + 1], reduction="sum"), len(keep)


def arguments(config: TrainConfig, held: Precision, folder: Path) -> optimizers.Arguments:
    """Translate our configs into transformers' arguments."""
    on_gpu = torch.cuda.is_available()
    options = config.shaping()
    del options["neftune_noise_alpha"]  # ours knows packed rows: tuneline.train.noise
    del options["levers"]
    options |= optimizers.arguments(config)
    args = optimizers.Arguments(
        output_dir=str(folder),
        **options,
        bf16=held.autocast == torch.bfloat16,
        fp16=held.autocast == torch.float16,
        use_cpu=not on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would show the last finite loss instead
        report_to="none",
        save_strategy="no",  # tuneline.train.resumable says when
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        average_tokens_across_devices=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device: DataParallel would split the packed row
    return args
