"""What a training loop takes of the machine."""

import time

import numpy as np
import pytest
import torch

from tuneline.model import device
from tuneline.train.monitoring import resource_usage

SIZE = 64 * 2**20


def hold(size):
    return np.ones(size, np.uint8)


@pytest.mark.parametrize("kernel", [True, False], ids=["high-water mark", "looked at"])
def test_memory_that_is_given_back_counts_and_what_was_held_before_does_not(monkeypatch, kernel):
    if kernel and not resource_usage._reset_high_water_mark():
        pytest.skip("this system keeps no high-water mark that can be forgotten")
    if not kernel:
        monkeypatch.setattr(
            resource_usage, "CLEAR_REFS_FILE", resource_usage.CLEAR_REFS_FILE.with_name("nothing-like-this")
        )
    before, gone = hold(SIZE), hold(4 * SIZE)
    del gone
    watched = resource_usage.ResourceUsage()

    with watched():
        held = hold(2 * SIZE)
        for _ in range(20):  # long enough to be looked at
            held = held[::-1].copy()
        del held

    taken = watched.figures()["train_memory_bytes"]
    assert 2 * SIZE * 0.9 < taken < 4.5 * SIZE, "two copies at once, and not the four that were gone before"
    assert watched.figures()["memory_before_bytes"] > before.nbytes
    assert watched.figures()["train_cpu_seconds"] > 0


@pytest.mark.parametrize("kind", ["cuda", "xpu", "npu"])
def test_on_an_accelerator_its_own_peak_counts_from_the_loop_on(monkeypatch, kind):
    """What torch says is stood for here; that it says it is for a machine with a GPU to show."""
    told = {"held": 100, "peak": 9_000}
    monkeypatch.setattr(device, "device_type", lambda: kind)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda: told["held"])
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda: told.update(peak=told["held"]))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: told["peak"])
    watched = resource_usage.ResourceUsage()

    with watched():
        told["peak"] = 1_500

    assert watched.figures()["train_memory_bytes"] == 1_400, "the peak of loading is forgotten"


def test_mps_keeps_no_peak_so_its_memory_is_looked_at(monkeypatch):
    told = iter([100, 100, 900, *[400] * 1000])
    monkeypatch.setattr(device, "device_type", lambda: "mps")
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: next(told))
    watched = resource_usage.ResourceUsage()

    with watched():
        time.sleep(2 * resource_usage.POLL_SECONDS)

    assert watched.figures()["train_memory_bytes"] == 800
