"""A transformers Trainer with checkpoints that survive a killed process: saving, loading and stopping on signals.

The trainer of a stage inherits from `ResumableTrainer`. Trainable parameters are stored by name, so every method
resumes the same way; further state of a method (the ranks of AdaLoRA) is stored by its family.
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.config.training.base import TrainingConfig
from tuneline.model.methods.base import MethodFamily
from tuneline.storage_errors import is_full
from tuneline.train.checkpoint.best_weights import BestWeights
from tuneline.train.checkpoint.training_state import CHECKPOINT_PREFIX, TrainingState, checkpoint_step
from tuneline.train.objectives import Objective
from tuneline.train.write_errors import WRITE_ERRORS

logger = logging.getLogger(__name__)

WEIGHTS_FILE, EXTRA_STATE_FILE, METRICS_FILE = "trained.safetensors", "beside.pt", "figures.json"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Records the signal that asks the training to stop after the current step."""

    signal_name = ""


class ResumableTrainer(Trainer):
    """Writes and loads checkpoints; a checkpoint is either complete or absent."""

    family: MethodFamily
    training_state: TrainingState | None = None
    """Where checkpoints are stored; None disables checkpoints."""

    save_total_limit = 2
    history: list[dict[str, float]]
    samples: list[dict[str, Any]]
    tokens_seen = 0
    tokens_trained = 0
    """Number of seen tokens with a loss."""

    objective: Objective
    best: BestWeights
    """The weights of the best evaluation so far."""

    trainable_names: frozenset[str] | None = None
    """Names of the trainable parameters, taken before an optimizer freezes some of them (BAdam)."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.training_state.unfinished_folder if self.training_state else super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint into a temporary folder and rename it when complete; a full disk only logs a warning."""
        state = self.training_state
        if state is None:
            return
        state.discard_unfinished()
        state.unfinished_folder.mkdir(parents=True)
        try:
            super()._save_checkpoint(model, trial)
            folder = state.unfinished_folder / f"{CHECKPOINT_PREFIX}{self.state.global_step}"
            state.finalize(folder, self.save_total_limit)
        except WRITE_ERRORS as error:
            full = is_full(error, state.folder)
            state.discard_unfinished()
            if not full:
                raise
            latest = state.latest()
            previous = (
                f"the latest complete one is of step {checkpoint_step(latest)}" if latest else "there is none yet"
            )
            logger.warning(
                "The disk of %s is full, so the checkpoint of step %d could not be written; %s. Training continues; "
                "free some space before the next checkpoint.",
                state.folder,
                self.state.global_step,
                previous,
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the trainable parameters by name, and the metrics so far."""
        folder = Path(output_dir or self.training_state.unfinished_folder)  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: part.detach().contiguous() for name, part in self.trainable_parameters().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        torch.save(self.family.extra_state(self.model), folder / EXTRA_STATE_FILE)
        metrics = {
            "history": self.history,
            "tokens_seen": self.tokens_seen,
            "tokens_trained": self.tokens_trained,
            "best": self.best.state(),
        }
        metrics |= {"objective": self.objective.state(), "samples": self.samples}
        (folder / METRICS_FILE).write_text(json.dumps(metrics))
        self.best.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Restore the trainable parameters, the metrics and the best weights."""
        folder = Path(resume_from_checkpoint)
        weights, parameters = load_file(folder / WEIGHTS_FILE), self.trainable_parameters()
        assert weights.keys() == parameters.keys(), "the identity of the training state fixes what is trained"
        with torch.no_grad():
            for name, part in parameters.items():
                part.copy_(weights[name])
        self.family.load_extra_state(self.model, torch.load(folder / EXTRA_STATE_FILE, weights_only=True))
        metrics = json.loads((folder / METRICS_FILE).read_text())
        self.history[:] = metrics["history"]
        self.tokens_seen, self.tokens_trained = metrics["tokens_seen"], metrics["tokens_trained"]
        self.best.restore(metrics["best"], folder)
        self.objective.restore(metrics["objective"])
        self.samples[:] = metrics["samples"]

    def trainable_parameters(self) -> dict[str, torch.Tensor]:
        """Return the trainable parameters by name."""
        names = self.trainable_names
        parameters = self.model.named_parameters()
        return {name: part for name, part in parameters if (name in names if names else part.requires_grad)}


class CheckpointCallback(TrainerCallback):
    """Requests a checkpoint every `save_steps` steps, every `save_seconds` seconds, and on a stop request."""

    def __init__(self, config: TrainingConfig, stop: StopRequest) -> None:
        self._config, self._stop = config, stop
        self._last_save = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint if one is due; not after the last step, as the result is saved next."""
        if state.global_step >= state.max_steps:
            return
        by_steps = self._config.save_steps and state.global_step % self._config.save_steps == 0
        by_time = time.monotonic() - self._last_save >= self._config.save_seconds
        if by_steps or by_time or self._stop.signal_name:
            control.should_save = True
            self._last_save = time.monotonic()
        if self._stop.signal_name:
            control.should_training_stop = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Stop the training after its current step on SIGTERM or SIGINT; a second signal ends the process immediately.

    Python delivers signals to the main thread only; in other threads this does nothing.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, request_stop) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
