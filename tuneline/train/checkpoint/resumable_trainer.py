"""A transformers Trainer that can be killed: what it adds to save, to find, and to go on from checkpoints.

A stage's trainer inherits from `Resumable` first. Trained parameters are kept by name, so that every method goes on
alike; what a method keeps beside (AdaLoRA's ranks) its family says.
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
    """Set by a signal; the training stops after the step that it is in."""

    asked = ""


class ResumableTrainer(Trainer):
    """Checkpoints that are whole or not there."""

    family: MethodFamily
    kept: TrainingState | None = None
    """Where checkpoints go; None saves none."""

    keep = 2
    history: list[dict[str, float]]
    samples: list[dict[str, Any]]
    tokens_seen = 0
    tokens_trained = 0
    """Those of them that carried loss."""
    objective: Objective
    best: BestWeights
    """The best evaluation so far."""
    names: frozenset[str] | None = None
    """What is trained, from before an optimizer set parts of it aside (BAdam)."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.kept.unfinished_folder) if self.kept else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and give it its name once it is whole; a full disk is told, and training goes on."""
        if self.kept is None:
            return
        self.kept.discard_unfinished()
        self.kept.unfinished_folder.mkdir(parents=True)
        try:
            super()._save_checkpoint(model, trial)
            self.kept.finalize(self.kept.unfinished_folder / f"{CHECKPOINT_PREFIX}{self.state.global_step}", self.keep)
        except WRITE_ERRORS as error:
            full = is_full(error, self.kept.folder)
            self.kept.discard_unfinished()
            if not full:
                raise
            latest = self.kept.latest()
            have = f"the last whole one is of step {checkpoint_step(latest)}" if latest else "there is none yet"
            logger.warning(
                "The disk of %s is full, so the checkpoint of step %d could not be written; %s. Training goes on: free "
                "some space before the next one.",
                self.kept.folder,
                self.state.global_step,
                have,
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained, by name, and the figures so far."""
        folder = Path(output_dir or self.kept.unfinished_folder)  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: part.detach().contiguous() for name, part in self.trained().items()}
        save_file(trained, folder / WEIGHTS_FILE)
        torch.save(self.family.extra_state(self.model), folder / EXTRA_STATE_FILE)
        figures = {
            "history": self.history,
            "tokens_seen": self.tokens_seen,
            "tokens_trained": self.tokens_trained,
            "best": self.best.state(),
        }
        figures |= {"objective": self.objective.state(), "samples": self.samples}
        (folder / METRICS_FILE).write_text(json.dumps(figures))
        self.best.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Give the trained parameters the values that were saved."""
        folder = Path(resume_from_checkpoint)
        saved, own = load_file(folder / WEIGHTS_FILE), self.trained()
        assert saved.keys() == own.keys(), "a checkpoint is found by what is trained"
        with torch.no_grad():
            for name, part in own.items():
                part.copy_(saved[name])
        self.family.load_extra_state(self.model, torch.load(folder / EXTRA_STATE_FILE, weights_only=True))
        figures = json.loads((folder / METRICS_FILE).read_text())
        self.history[:] = figures["history"]
        self.tokens_seen, self.tokens_trained = figures["tokens_seen"], figures["tokens_trained"]
        self.best.restore(figures["best"], folder)
        self.objective.restore(figures["objective"])
        self.samples[:] = figures["samples"]

    def trained(self) -> dict[str, torch.Tensor]:
        """Return what is trained, by name."""
        parts = self.model.named_parameters()
        return {name: part for name, part in parts if (name in self.names if self.names else part.requires_grad)}


class CheckpointCallback(TrainerCallback):
    """Say when to save: after so many steps, after so much time, and when told to stop."""

    def __init__(self, config: TrainingConfig, stop: StopRequest) -> None:
        self._config, self._stop = config, stop
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint; after the last step none is due, as what was trained is saved next."""
        if state.global_step >= state.max_steps:
            return
        by_steps = self._config.save_steps and state.global_step % self._config.save_steps == 0
        by_time = time.monotonic() - self._last >= self._config.save_seconds
        if by_steps or by_time or self._stop.asked:
            control.should_save = True
            self._last = time.monotonic()
        if self._stop.asked:
            control.should_training_stop = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Let SIGTERM and SIGINT stop the training after its step; a second one ends the process at once.

    Only the main thread can listen; elsewhere signals do what they did before.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
