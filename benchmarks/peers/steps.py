"""What trainings are measured by, alike for everyone: CPU time at the end of each optimizer step, and real tokens.

Imports transformers and torch alone, and only where they are needed: it also runs under the interpreters of peers.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.peers import process

ADAPTER = "adapter_model.safetensors"


class Clock:
    """Counts; step 1 is left out, since what happens once (warming up, late imports) happens there."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[tuple[float, float]] = []
        self.peak_rss = 0

    def step(self) -> None:
        """Note the end of an optimizer step."""
        self.ends.append((process.cpu_seconds(), time.perf_counter()))
        self.peak_rss = high_water()

    def found(self, tokens_by_step: list[int]) -> process.Result:
        """Return what was measured.

        Args:
            tokens_by_step: Real tokens, which padding is not.
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


def high_water() -> int:
    """Return the most memory (bytes, resident) that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def tokens_by_step(rows: Any, rows_a_step: int) -> list[int]:
    """Count the tokens of rows that are read in order; padding is 0 in the attention mask, where there is one."""
    columns = rows.column_names
    name = "attention_mask" if "attention_mask" in columns else "input_ids"
    counted = (lambda row: sum(1 for mark in row if mark)) if name == "attention_mask" else len
    real = [counted(row) for row in rows[name]]
    return [sum(real[i : i + rows_a_step]) for i in range(0, len(real), rows_a_step)]


def read_in_order() -> None:
    """Let transformers' trainers of this process read their rows in order: everyone trains on the same ones at once."""
    import transformers
    from torch.utils.data import SequentialSampler

    def in_order(self: Any, dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)

    transformers.Trainer._get_train_sampler = in_order


def callback(clock: Clock) -> Any:
    """Return a callback of transformers' trainers that keeps the clock."""
    from transformers import TrainerCallback

    class AtEachStep(TrainerCallback):  # type: ignore[misc]
        """Note the end of each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    return AtEachStep()
