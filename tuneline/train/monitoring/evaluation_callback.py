"""Held-out rows while training: figures at evaluation points, the best weights kept, a stop where nothing gets better.

An evaluation draws no random numbers and changes no weights, so that a training ends in the same weights with it and
without.
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
    """What the callback needs of a trainer."""

    model: Any
    optimizer: Any
    state: Any
    best: BestWeights
    samples: list[dict[str, Any]]

    def validate(self) -> dict[str, float]: ...

    def trained(self) -> dict[str, torch.Tensor]: ...

    def tell(self, figures: dict[str, float]) -> None: ...

    def autocast(self) -> AbstractContextManager[None]: ...


class EvaluationCallback(TrainerCallback):
    """Evaluate every so many steps."""

    def __init__(self, config: TrainingConfig, loop: EvaluatedTrainer, sampler: SampleGenerator | None = None) -> None:
        self._config, self._loop, self._sampler = config, loop, sampler
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate where it is time, and stop where nothing has got better for long enough."""
        if not self._config.eval_steps or state.global_step % self._config.eval_steps:
            return
        with optimizer_factory.evaluation_weights(self._loop.optimizer, self._loop.trained()):
            self._evaluate(state.global_step, control)

    def _evaluate(self, step: int, control: TrainerControl) -> None:
        config, figures = self._config, self._loop.validate()
        self._loop.tell({f"validation_{name}": value for name, value in figures.items()})
        if self._sampler:
            with self._loop.autocast():
                self._loop.samples += self._sampler.answers(self._loop.model, step)
        standing = self._loop.best.standing
        if figures["loss"] < standing.loss:
            self._loop.best.record(figures["loss"], step)
            if config.load_best_model_at_end:
                self._loop.best.keep(self._loop.trained())
            return
        standing.worse_since += 1
        if config.early_stopping_patience and standing.worse_since >= config.early_stopping_patience:
            self.stopped = True
            control.should_training_stop = True

    def finish(self) -> dict[str, str]:
        """Put the best weights back where the recipe asks for it; return what was done, in words."""
        standing, step = self._loop.best.standing, self._loop.state.global_step
        said = {}
        if self.stopped:
            said["early_stopping"] = f"stopped after step {step}: the validation loss was best at step {standing.step}"
        if self._config.load_best_model_at_end and standing.step and standing.step != step:
            said["best"] = self._best(standing, step)
        return said

    def _best(self, standing: BestEvaluation, step: int) -> str:
        if not standing.sha256:
            why = f"weights of step {step}, the last: those of step {standing.step}, the best, could not be kept"
            logger.warning("train.load_best_model_at_end: %s.", why)
            return why
        self._loop.best.restore_weights(self._loop.trained())
        return f"weights of step {standing.step}, whose validation loss {standing.loss:.4f} is the lowest"
