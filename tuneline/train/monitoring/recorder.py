"""What the training loop tells while it goes on: a progress bar, a history, and whoever else listens."""

import time
from collections.abc import Callable
from math import isfinite, isnan
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.errors import VerificationError
from tuneline.model import device
from tuneline.progress import Advance

StepListener = Callable[[dict[str, float], int], None]
"""Gets the figures of an optimizer step, and its number."""

TRAINER_METRICS = ("loss", "learning_rate", "grad_norm")


class MetricsRecorder(TrainerCallback):
    """Keep the figures of each step, and pass them on."""

    def __init__(
        self,
        advance: Advance,
        listeners: tuple[StepListener, ...],
        tokens_seen: Callable[[], int],
        history: list[dict[str, float]],
        more: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.history = history
        self._more = more
        self.peak_memory_bytes = 0
        self.tokens_before = 0
        self._advance, self._listeners, self._tokens_seen = advance, listeners, tokens_seen
        self._last_time, self._last_tokens = time.monotonic(), 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Count speed from here: a training that goes on has seen tokens before."""
        self._last_time, self._last_tokens = time.monotonic(), self._tokens_seen()
        self.tokens_before = self._last_tokens

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        _refuse_no_number(logs, state.global_step, scaled=args.fp16)
        now, tokens = time.monotonic(), self._tokens_seen()
        speed = (tokens - self._last_tokens) / max(now - self._last_time, 1e-9)
        self._last_time, self._last_tokens = now, tokens
        memory = peak_memory()
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        figures = {name: float(logs[name]) for name in TRAINER_METRICS if name in logs}
        figures |= {"tokens_per_second": speed, "memory_bytes": float(memory), **self._more()}
        self.history.append({"step": float(state.global_step), **figures})
        for listener in self._listeners:
            listener(figures, state.global_step)
        self._advance(state.global_step, _shown(figures))


def _shown(figures: dict[str, float]) -> str:
    """Return what stands beside the progress bar."""
    parts = [f"loss {figures['loss']:.3f}"]
    if "rewards/accuracies" in figures:
        parts.append(f"accuracy {figures['rewards/accuracies']:.0%}")
    if "validation_loss" in figures:
        parts.append(f"held out {figures['validation_loss']:.3f}")
    return ", ".join([*parts, f"{figures['tokens_per_second']:.0f} tokens/s", _gigabytes(figures["memory_bytes"])])


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _refuse_no_number(logs: dict[str, Any], step: int, *, scaled: bool) -> None:
    """Stop where the loss or the gradients are no number, before a checkpoint keeps what they made of the weights.

    Args:
        logs: Figures of the step.
        step: Its number.
        scaled: A loss scaler leaves out steps whose gradients are no number.
    """
    wrong = "" if isfinite(logs["loss"]) else "loss"
    if not wrong and not scaled and not isfinite(logs.get("grad_norm", 0.0)):
        wrong = "norm of the gradients"
    if wrong:
        value = "NaN" if isnan(logs["loss"]) or wrong != "loss" else "infinite"
        raise VerificationError(
            f"The {wrong} became {value} in step {step}, so the weights are worthless from there on. Lower "
            "train.learning_rate, or look for the rows of that step."
        )


def peak_memory() -> int:
    """Return the memory in use: of the accelerator at its peak, else of this process."""
    return device.peak_memory_bytes()
