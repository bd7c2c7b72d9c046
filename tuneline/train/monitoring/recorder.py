"""Records the metrics of each training step: history, progress bar and listeners."""

import time
from collections.abc import Callable
from math import isfinite, isnan
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.errors import VerificationError
from tuneline.model import device
from tuneline.progress import Advance

StepListener = Callable[[dict[str, float], int], None]
"""Receives the metrics of an optimizer step, and its number."""

TRAINER_METRICS = ("loss", "learning_rate", "grad_norm")


class MetricsRecorder(TrainerCallback):
    """Stores the metrics of each step in the history and passes them to the listeners."""

    def __init__(
        self,
        advance: Advance,
        listeners: tuple[StepListener, ...],
        tokens_seen: Callable[[], int],
        history: list[dict[str, float]],
        extra_metrics: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.history = history
        self._extra_metrics = extra_metrics
        self.peak_memory_bytes = 0
        self.tokens_before = 0
        self._advance, self._listeners, self._tokens_seen = advance, listeners, tokens_seen
        self._last_time, self._last_tokens = time.monotonic(), 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start measuring speed; a resumed training has already seen tokens."""
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
        _check_finite(logs, state.global_step, has_loss_scaler=args.fp16)
        now, tokens = time.monotonic(), self._tokens_seen()
        speed = (tokens - self._last_tokens) / max(now - self._last_time, 1e-9)
        self._last_time, self._last_tokens = now, tokens
        memory = peak_memory()
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        metrics = {name: float(logs[name]) for name in TRAINER_METRICS if name in logs}
        metrics |= {"tokens_per_second": speed, "memory_bytes": float(memory), **self._extra_metrics()}
        self.history.append({"step": float(state.global_step), **metrics})
        for listener in self._listeners:
            listener(metrics, state.global_step)
        self._advance(state.global_step, _format_metrics(metrics))


def _format_metrics(metrics: dict[str, float]) -> str:
    """Return the text next to the progress bar."""
    parts = [f"loss {metrics['loss']:.3f}"]
    if "rewards/accuracies" in metrics:
        parts.append(f"accuracy {metrics['rewards/accuracies']:.0%}")
    if "validation_loss" in metrics:
        parts.append(f"validation loss {metrics['validation_loss']:.3f}")
    return ", ".join([*parts, f"{metrics['tokens_per_second']:.0f} tokens/s", _gigabytes(metrics["memory_bytes"])])


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _check_finite(logs: dict[str, Any], step: int, *, has_loss_scaler: bool) -> None:
    """Stop the training if the loss or the gradient norm is not finite, before a checkpoint stores broken weights.

    Args:
        logs: Metrics of the step.
        step: Its number.
        has_loss_scaler: A loss scaler skips steps whose gradients are not finite.
    """
    metric = "" if isfinite(logs["loss"]) else "loss"
    if not metric and not has_loss_scaler and not isfinite(logs.get("grad_norm", 0.0)):
        metric = "gradient norm"
    if metric:
        value = "NaN" if isnan(logs["loss"]) or metric != "loss" else "infinite"
        raise VerificationError(
            f"The {metric} is {value} at step {step}; the weights are invalid from there on. Lower "
            "train.learning_rate, or check the rows of that step."
        )


def peak_memory() -> int:
    """Return the peak memory in bytes; the current memory if the device records no peak."""
    return device.peak_memory_bytes()
