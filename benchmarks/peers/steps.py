"""Measurement of all trainings: CPU time at the end of each optimizer step, and tokens without padding.

Imports transformers and torch only, inside functions: the module also runs in the Python environments of peers.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.peers import process

ADAPTER = "adapter_model.safetensors"


class StepClock:
    """Measures steps; step 1 is not counted, as it includes warm-up and late imports."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.ends: list[tuple[float, float]] = []
        self.peak_rss = 0

    def step(self) -> None:
        """Record the end of an optimizer step."""
        self.ends.append((process.cpu_seconds(), time.perf_counter()))
        self.peak_rss = peak_rss()

    def result(self, tokens_by_step: list[int]) -> process.Result:
        """Return the measurements.

        Args:
            tokens_by_step: Number of tokens without padding.
        """
        assert len(self.ends) == len(tokens_by_step) > 1, f"{len(self.ends)} steps of {tokens_by_step} tokens"
        (cpu, wall), (last_cpu, last_wall) = self.ends[0], self.ends[-1]
        return {
            "cpu": last_cpu - cpu,
            "wall": last_wall - wall,
            "cpu_by_step": [round(b[0] - a[0], 2) for a, b in zip(self.ends, self.ends[1:], strict=False)],
            "cpu_to_first_step": cpu,
            "tokens": sum(tokens_by_step[1:]),
            "all_tokens": sum(tokens_by_step),
            "steps": len(self.ends),
            "peak_rss": self.peak_rss,
        }


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def tokens_by_step(rows: Any, rows_a_step: int) -> list[int]:
    """Count the tokens per step of rows in order; padding is 0 in the attention mask, if there is one."""
    columns = rows.column_names
    name = "attention_mask" if "attention_mask" in columns else "input_ids"
    count = (lambda row: sum(1 for value in row if value)) if name == "attention_mask" else len
    counts = [count(row) for row in rows[name]]
    return [sum(counts[i : i + rows_a_step]) for i in range(0, len(counts), rows_a_step)]


def disable_shuffling() -> None:
    """Make the trainers of transformers read rows in order, so that all contenders train on the same rows per step."""
    import transformers
    from torch.utils.data import SequentialSampler

    def in_order(self: Any, dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)

    transformers.Trainer._get_train_sampler = in_order


def clock_callback(clock: StepClock) -> Any:
    """Return a callback for the trainers of transformers that records each step."""
    from transformers import TrainerCallback

    class ClockCallback(TrainerCallback):  # type: ignore[misc]
        """Records the end of each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    return ClockCallback()
