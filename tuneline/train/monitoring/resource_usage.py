"""Measures the memory of the training loop, beyond the memory used before, and its CPU seconds.

On an accelerator, the peak of its allocator is read. On Linux, the kernel records the peak resident memory of a process
and resets it on request (`/proc/self/clear_refs`, proc(5)); elsewhere, and for MPS, memory is polled 20 times per
second.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tuneline.model import device

CLEAR_REFS_FILE = Path("/proc/self/clear_refs")
STATUS_FILE = Path("/proc/self/status")
POLL_SECONDS = 0.05


class ResourceUsage:
    """Memory and CPU time of a block; create it before the model is loaded."""

    def __init__(self) -> None:
        self.before_bytes = memory_in_use()
        self.peak_bytes = 0
        self.cpu_seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure the block."""
        start = time.process_time()
        with _measure_peak() as peak:
            yield
            self.peak_bytes = peak()
        self.cpu_seconds = time.process_time() - start

    def metrics(self) -> dict[str, float]:
        """Return the metrics.

        Returns:
            `memory_before_bytes`, the memory in use before the model was loaded; `train_memory_bytes`, the peak of the
            loop beyond that; `train_cpu_seconds`, summed over all threads.
        """
        return {
            "memory_before_bytes": float(self.before_bytes),
            "train_memory_bytes": float(max(self.peak_bytes - self.before_bytes, 0)),
            "train_cpu_seconds": self.cpu_seconds,
        }


def memory_in_use() -> int:
    """Return the bytes in use now, of the accelerator or else of this process."""
    return device.memory_bytes()


@contextmanager
def _measure_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak memory in bytes since the start of the block."""
    if device.tracks_peak_memory():
        torch.accelerator.reset_peak_memory_stats()
        yield device.peak_memory_bytes
    elif device.device_type() == "cpu" and _reset_high_water_mark():
        yield _read_high_water_mark
    else:
        with _poll() as peak:
            yield peak


def _reset_high_water_mark() -> bool:
    """Reset the peak memory that the kernel records for this process; return whether that is supported."""
    try:
        CLEAR_REFS_FILE.write_text("5")
        _read_high_water_mark()
    except (OSError, LookupError):
        return False
    return True


def _read_high_water_mark() -> int:
    lines = dict(line.split(":", 1) for line in STATUS_FILE.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


@contextmanager
def _poll() -> Iterator[Callable[[], int]]:
    peak, done = [memory_in_use()], threading.Event()

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            peak[0] = max(peak[0], memory_in_use())

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak[0], memory_in_use())
    finally:
        done.set()
        thread.join()
