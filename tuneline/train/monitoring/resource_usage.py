"""What a training loop takes of the machine: memory beyond what was held before it, and processor seconds.

On an accelerator the allocator's own peak is read. On Linux the kernel keeps the high-water mark of a process's pages
and forgets it on request (`/proc/self/clear_refs`, proc(5)); elsewhere, and for MPS, memory is read twenty times per
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
    """Made before the model is loaded; used around the loop."""

    def __init__(self) -> None:
        self.before_bytes = memory_in_use()
        self.peak_bytes = 0
        self.cpu_seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch the block."""
        start = time.process_time()
        with _watched() as peak:
            yield
            self.peak_bytes = peak()
        self.cpu_seconds = time.process_time() - start

    def figures(self) -> dict[str, float]:
        """Return the figures.

        Returns:
            `memory_before_bytes`, held before the model was loaded; `train_memory_bytes`, the loop's peak beyond that;
            `train_cpu_seconds` of all threads.
        """
        return {
            "memory_before_bytes": float(self.before_bytes),
            "train_memory_bytes": float(max(self.peak_bytes - self.before_bytes, 0)),
            "train_cpu_seconds": self.cpu_seconds,
        }


def memory_in_use() -> int:
    """Return the bytes in use now: of the accelerator, else of this process."""
    return device.memory_bytes()


@contextmanager
def _watched() -> Iterator[Callable[[], int]]:
    """Yield what returns the most bytes held since the block began."""
    if device.tracks_peak_memory():
        torch.accelerator.reset_peak_memory_stats()
        yield device.peak_memory_bytes
    elif device.device_type() == "cpu" and _reset_high_water_mark():
        yield _high_water
    else:
        with _looked_at() as peak:
            yield peak


def _reset_high_water_mark() -> bool:
    """Make the kernel forget the high-water mark of this process; tell whether it did."""
    try:
        CLEAR_REFS_FILE.write_text("5")
        _high_water()
    except (OSError, LookupError):
        return False
    return True


def _high_water() -> int:
    lines = dict(line.split(":", 1) for line in STATUS_FILE.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


@contextmanager
def _looked_at() -> Iterator[Callable[[], int]]:
    most, done = [memory_in_use()], threading.Event()

    def look() -> None:
        while not done.wait(POLL_SECONDS):
            most[0] = max(most[0], memory_in_use())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: max(most[0], memory_in_use())
    finally:
        done.set()
        thread.join()
