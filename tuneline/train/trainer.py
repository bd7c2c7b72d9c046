"""A thin `transformers.Trainer`: logits at trained positions only, and a loss that weighs items, not rows.

The loss is the sum over an objective's items (tokens, pairs) divided by their number in the whole optimizer step, so
that accumulation and batch size do not matter. What a method needs beside (groups of the optimizer, a penalty, work
after a step) its family says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.config.sections.method import Method
from tuneline.config.training.base import TrainingConfig
from tuneline.config.training.optimizers import OPTIMIZER_SPECS
from tuneline.errors import RecipeError
from tuneline.model import device
from tuneline.model.methods.base import MethodFamily
from tuneline.model.precision import Precision
from tuneline.train import token_losses
from tuneline.train.checkpoint.resumable_trainer import ResumableTrainer
from tuneline.train.neftune import NeftuneNoise
from tuneline.train.objectives import Objective
from tuneline.train.objectives.base import count_trained_tokens
from tuneline.train.optim import optimizer_factory

if TYPE_CHECKING:
    from tuneline.train.levers.apply import Levers


class StageTrainer(ResumableTrainer):
    """An objective's loss, averaged over the items of an optimizer step."""

    optimizer: Any
    levers: "Levers | None" = None
    """What makes a step fast; nothing where it is not set."""

    def __init__(
        self,
        family: MethodFamily,
        method: Method,
        objective: Objective,
        noise: NeftuneNoise | None = None,
        **options: Any,
    ) -> None:
        self.family, self.method, self.objective, self.noise = family, method, objective, noise
        self.history, self.samples = [], []
        self._sums: dict[str, tuple[float, float]] = {}
        self._told: dict[str, float] = {}
        with _as_adapted(options["model"], adapted=family.kind == "adapter"):
            super().__init__(**options)
        self.model_accepts_loss_kwargs = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        count = torch.tensor(sum(self.objective.num_items(batch) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        self.tokens_seen += inputs["input_ids"].numel()
        self.tokens_trained += count_trained_tokens(inputs)
        if self.noise:
            self.noise.set_example_bounds(inputs["cu_seq_lens_q"])
        found = self.objective.measure(model, inputs, self.token_losses)
        self.accumulate_metrics(found.figures)
        loss = found.total / (num_items_in_batch if num_items_in_batch is not None else found.num_items)
        penalty = self.family.penalty(model)
        return loss if penalty is None else loss + penalty / self.args.gradient_accumulation_steps

    def token_losses(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropies (nats) [N] of a row's trained tokens, and the positions [N] they stand behind."""
        if self.levers:
            return self.levers.token_losses(inputs)
        return token_losses.token_losses(self.family, self.model, inputs)

    def figures(self) -> dict[str, float]:
        """Return what the objective watched since the last call, on average, and what else was told."""
        found = {name: total / count for name, (total, count) in self._sums.items()} | self._told
        self._sums, self._told = {}, {}
        return found

    def accumulate_metrics(self, figures: dict[str, tuple[float, float]]) -> None:
        """Count figures (name -> sum and number) towards the averages of this step."""
        _add(self._sums, figures)

    def tell(self, figures: dict[str, float]) -> None:
        """Have figures shown with those of this step."""
        self._told |= figures

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss and the figures of the held-out rows, averaged over their items; NaN where there are none."""
        training = self.model.training
        self.model.eval()
        total, count, sums = 0.0, 0, dict[str, tuple[float, float]]()
        size = self.args.per_device_train_batch_size
        for start in range(0, len(self.eval_dataset), size):
            rows = [self.eval_dataset[i] for i in range(start, min(start + size, len(self.eval_dataset)))]
            inputs = self._prepare_inputs(self.objective.collate(rows))
            with self.autocast():
                found = self.objective.measure(self.model, inputs, self.token_losses)
            total, count = total + float(found.total), count + found.num_items
            _add(sums, found.figures)
        self.model.train(training)
        return {"loss": total / count if count else float("nan")} | {name: a / b for name, (a, b) in sums.items()}

    def autocast(self) -> torch.autocast:
        """Return the number format that the model computes in outside of training steps, as a context."""
        kind = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, kind, enabled=self.args.bf16 or self.args.fp16)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer, in the groups that the method asks for."""
        groups = self.family.parameter_groups(self.model, self.method, self.args.learning_rate, self.args.weight_decay)
        if self.optimizer is None:
            self.names = frozenset(self.trained())
            self.optimizer = optimizer_factory.build_optimizer(self, groups)
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Tell no norm where the gradients are gone by then."""
        in_backward = OPTIMIZER_SPECS[self.args.optimizer_name].steps_in_backward
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


class AfterStepCallback(TrainerCallback):
    """Let the method work between an optimizer step and the clearing of gradients."""

    def __init__(self, family: MethodFamily, model: Any) -> None:
        self._family, self._model = family, model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._family.after_step(self._model, state.global_step)


def _add(sums: dict[str, tuple[float, float]], more: dict[str, tuple[float, float]]) -> None:
    for name, (total, count) in more.items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = before[0] + total, before[1] + count


def training_arguments(
    config: TrainingConfig, held: Precision, folder: Path
) -> optimizer_factory.StageTrainingArguments:
    """Translate our configs into transformers' arguments.

    Raises:
        RecipeError: transformers would train on another device than the model is loaded onto.
    """
    kind = device.device_type()
    args = optimizer_factory.StageTrainingArguments(
        output_dir=str(folder),
        **(config.arguments() | optimizer_factory.optimizer_arguments(config)),
        bf16=held.autocast == torch.bfloat16,
        fp16=held.autocast == torch.float16,
        use_cpu=kind == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would show the last finite loss instead
        report_to="none",
        save_strategy="no",  # tuneline.train.checkpoint.resumable_trainer says when
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=kind in device.PEAK_MEMORY_DEVICES,
        average_tokens_across_devices=True,
    )
    others = {args.device.type, args.distributed_state.device.type} - {kind}
    if others:
        raise RecipeError(
            f"The model is loaded onto {kind}, and transformers would train on {', '.join(others)}. Unset "
            "ACCELERATE_USE_CPU, or hide the accelerator from torch, like by CUDA_VISIBLE_DEVICES=''."
        )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device: DataParallel would split the packed row
    return args
