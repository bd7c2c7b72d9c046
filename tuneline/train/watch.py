"""Held-out rows while training: figures at evaluation points, the best weights kept, a stop where nothing gets better.

An evaluation draws no random numbers and changes no weights, so that a training ends in the same weights with it and
without.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.config.train import Optimisation
from tuneline.train import optimizers
from tuneline.train.samples import Sampler

if TYPE_CHECKING:
    from tuneline.train.trainer import StageTrainer

logger = logging.getLogger(__name__)


@dataclass
class Standing:
    """The best evaluation so far."""

    loss: float = float("inf")
    step: int = 0
    worse_since: int = 0
    """Evaluations since the best."""


class Best:
    """The weights of the best evaluation, in a file beside the checkpoints, and where it stands."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "best.safetensors"
        self.standing = Standing()

    def state(self) -> dict[str, Any]:
        """Return where it stands, for a checkpoint."""
        return asdict(self.standing)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where a checkpoint stood."""
        self.standing = Standing(**state)

    def keep(self, trained: dict[str, torch.Tensor]) -> None:
        """Write the weights, whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        save_file({name: part.detach().contiguous() for name, part in trained.items()}, fresh)
        fresh.replace(self._file)

    @torch.no_grad()
    def put_back(self, trained: dict[str, torch.Tensor]) -> None:
        """Give the trained parameters their best values."""
        saved = load_file(self._file)
        for name, part in trained.items():
            part.copy_(saved[name])


class Watch(TrainerCallback):
    """Evaluate every so many steps."""

    def __init__(self, config: Optimisation, loop: "StageTrainer", sampler: Sampler | None = None) -> None:
        self._config, self._loop, self._sampler = config, loop, sampler
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate where it is time, and stop where nothing has got better for long enough."""
        if not self._config.eval_steps or state.global_step % self._config.eval_steps:
            return
        with optimizers.settled(self._loop.optimizer, self._loop.trained()):
            self._evaluate(state.global_step, control)

    def _evaluate(self, step: int, control: TrainerControl) -> None:
        config, figures = self._config, self._loop.validate()
        self._loop.tell({f"validation_{name}": value for name, value in figures.items()})
        if self._sampler:
            with self._loop.autocast():
                self._loop.samples += self._sampler.answers(self._loop.model, step)
        standing = self._loop.best.standing
        if figures["loss"] < standing.loss:
            self._loop.best.restore({"loss": figures["loss"], "step": step, "worse_since": 0})
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
            self._loop.best.put_back(self._loop.trained())
            said["best"] = f"weights of step {standing.step}, whose validation loss {standing.loss:.4f} is the lowest"
        return said
