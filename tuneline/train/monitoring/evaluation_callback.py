"""Evaluates the validation rows during training, keeps the best weights and stops early.

An evaluation uses no random numbers and changes no weights, so the training ends with the same weights without it.
"""

import logging
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.config.training.base import TrainingConfig
from tuneline.train.checkpoint.best_weights import BestEvaluation, BestWeights
from tuneline.train.monitoring.sample_generations import SampleGenerator
from tuneline.train.optim import optimizer_factory

logger = logging.getLogger(__name__)


class EvaluatedTrainer(Protocol):
    """The part of a trainer that the callback uses."""

    model: Any
    optimizer: Any
    state: Any
    best: BestWeights
    samples: list[dict[str, Any]]

    def validate(self) -> dict[str, float]: ...

    def trainable_parameters(self) -> dict[str, torch.Tensor]: ...

    def log_scalars(self, scalars: dict[str, float]) -> None: ...

    def autocast(self) -> AbstractContextManager[None]: ...


class EvaluationCallback(TrainerCallback):
    """Evaluates every `eval_steps` steps."""

    def __init__(self, config: TrainingConfig, loop: EvaluatedTrainer, sampler: SampleGenerator | None = None) -> None:
        self._config, self._loop, self._sampler = config, loop, sampler
        self.stopped_early = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate if due, and stop the training if the loss has not improved for long enough."""
        if not self._config.eval_steps or state.global_step % self._config.eval_steps:
            return
        with optimizer_factory.evaluation_weights(self._loop.optimizer, self._loop.trainable_parameters()):
            self._evaluate(state.global_step, control)

    def _evaluate(self, step: int, control: TrainerControl) -> None:
        config, metrics = self._config, self._loop.validate()
        self._loop.log_scalars({f"validation_{name}": value for name, value in metrics.items()})
        if self._sampler:
            with self._loop.autocast():
                self._loop.samples += self._sampler.generate(self._loop.model, step)
        best = self._loop.best
        if metrics["loss"] < best.evaluation.loss:
            best.record(metrics["loss"], step)
            if config.load_best_model_at_end:
                best.save_weights(self._loop.trainable_parameters())
            return
        best.evaluation.worse_since += 1
        if config.early_stopping_patience and best.evaluation.worse_since >= config.early_stopping_patience:
            self.stopped_early = True
            control.should_training_stop = True

    def finalize(self) -> dict[str, str]:
        """Restore the best weights if the recipe says so; return the decisions as text."""
        best, step = self._loop.best.evaluation, self._loop.state.global_step
        decisions = {}
        if self.stopped_early:
            decisions["early_stopping"] = f"stopped after step {step}: the validation loss was best at step {best.step}"
        if self._config.load_best_model_at_end and best.step and best.step != step:
            decisions["best"] = self._restore_best(best, step)
        return decisions

    def _restore_best(self, best: BestEvaluation, step: int) -> str:
        if not best.sha256:
            decision = f"weights of step {step}, the last: those of step {best.step}, the best, could not be saved"
            logger.warning("train.load_best_model_at_end: %s.", decision)
            return decision
        self._loop.best.restore_weights(self._loop.trainable_parameters())
        return f"weights of step {best.step}, which has the lowest validation loss ({best.loss:.4f})"
