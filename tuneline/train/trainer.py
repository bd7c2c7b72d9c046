"""A `transformers.Trainer` that computes logits at trained positions only and weights the loss by items, not rows.

The loss is the sum over the items of an objective (tokens, pairs) divided by their number in the whole optimizer step,
so it does not depend on gradient accumulation or batch size. The method family adds optimizer groups, a penalty and
work after each step.
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
    """Minimizes the loss of an objective, averaged over the items of an optimizer step."""

    optimizer: Any
    levers: "Levers | None" = None
    """Optimizations of the training step; None disables all."""

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
        self._scalars: dict[str, float] = {}
        with _mark_as_adapted(options["model"], adapted=family.kind == "adapter"):
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
        output = self.objective.compute_loss(model, inputs, self.token_losses)
        self.accumulate_metrics(output.metrics)
        loss = output.total / (num_items_in_batch if num_items_in_batch is not None else output.num_items)
        penalty = self.family.penalty(model)
        return loss if penalty is None else loss + penalty / self.args.gradient_accumulation_steps

    def token_losses(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropies (nats) [N] of the trained tokens, and the positions [N] that predict them."""
        if self.levers:
            return self.levers.token_losses(inputs)
        return token_losses.token_losses(self.family, self.model, inputs)

    def pop_metrics(self) -> dict[str, float]:
        """Return the averages of accumulated metrics and the logged scalars since the last call, and clear both."""
        metrics = {name: total / count for name, (total, count) in self._sums.items()} | self._scalars
        self._sums, self._scalars = {}, {}
        return metrics

    def accumulate_metrics(self, metrics: dict[str, tuple[float, float]]) -> None:
        """Add metrics (name -> sum and count) to the averages of this step."""
        _add(self._sums, metrics)

    def log_scalars(self, scalars: dict[str, float]) -> None:
        """Log values with the metrics of this step."""
        self._scalars |= scalars

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss and metrics of the validation rows, averaged over their items; NaN without rows."""
        was_training = self.model.training
        self.model.eval()
        total, count, sums = 0.0, 0, dict[str, tuple[float, float]]()
        size = self.args.per_device_train_batch_size
        for start in range(0, len(self.eval_dataset), size):
            rows = [self.eval_dataset[i] for i in range(start, min(start + size, len(self.eval_dataset)))]
            inputs = self._prepare_inputs(self.objective.collate(rows))
            with self.autocast():
                output = self.objective.compute_loss(self.model, inputs, self.token_losses)
            total, count = total + float(output.total), count + output.num_items
            _add(sums, output.metrics)
        self.model.train(was_training)
        return {"loss": total / count if count else float("nan")} | {name: a / b for name, (a, b) in sums.items()}

    def autocast(self) -> torch.autocast:
        """Return an autocast context with the dtype of the training steps."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype, enabled=self.args.bf16 or self.args.fp16)

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the optimizer, with the parameter groups of the method."""
        groups = self.family.parameter_groups(self.model, self.method, self.args.learning_rate, self.args.weight_decay)
        if self.optimizer is None:
            self.trainable_names = frozenset(self.trainable_parameters())
            self.optimizer = optimizer_factory.build_optimizer(self, groups)
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return None if the optimizer steps in the backward pass, where gradients are freed before this call."""
        in_backward = OPTIMIZER_SPECS[self.args.optimizer_name].steps_in_backward
        return None if in_backward else super()._get_grad_norm(model, grad_norm=grad_norm)


@contextmanager
def _mark_as_adapted(model: Any, *, adapted: bool) -> Iterator[None]:
    """Mark adapters that are not peft's as such: transformers refuses to train a quantized model without adapters."""
    attributes = vars(model)
    unmarked = adapted and "_hf_peft_config_loaded" not in attributes
    if unmarked:
        attributes["_hf_peft_config_loaded"] = True
    try:
        yield
    finally:
        if unmarked:
            del attributes["_hf_peft_config_loaded"]


class AfterStepCallback(TrainerCallback):
    """Calls the method family between an optimizer step and the clearing of gradients."""

    def __init__(self, family: MethodFamily, model: Any) -> None:
        self._family, self._model = family, model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._family.after_step(self._model, state.global_step)


def _add(sums: dict[str, tuple[float, float]], metrics: dict[str, tuple[float, float]]) -> None:
    for name, (total, count) in metrics.items():
        previous = sums.get(name, (0.0, 0.0))
        sums[name] = previous[0] + total, previous[1] + count


def training_arguments(
    config: TrainingConfig, precision: Precision, folder: Path
) -> optimizer_factory.StageTrainingArguments:
    """Translate a training config into the arguments of transformers.

    Raises:
        RecipeError: transformers would train on another device than the one the model is loaded onto.
    """
    kind = device.device_type()
    args = optimizer_factory.StageTrainingArguments(
        output_dir=str(folder),
        **(config.arguments() | optimizer_factory.optimizer_arguments(config)),
        bf16=precision.autocast == torch.bfloat16,
        fp16=precision.autocast == torch.float16,
        use_cpu=kind == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would report the last finite loss instead
        report_to="none",
        save_strategy="no",  # CheckpointCallback decides when to save
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=kind in device.PEAK_MEMORY_DEVICES,
        average_tokens_across_devices=True,
    )
    others = {args.device.type, args.distributed_state.device.type} - {kind}
    if others:
        raise RecipeError(
            f"The model is loaded onto {kind}, but transformers would train on {', '.join(others)}. Unset "
            "ACCELERATE_USE_CPU, or hide the accelerator from torch, for example with CUDA_VISIBLE_DEVICES=''."
        )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device: DataParallel would split the packed row
    return args
