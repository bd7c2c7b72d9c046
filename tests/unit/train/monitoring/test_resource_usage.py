"""Memory and CPU time of a training loop."""

import time

import numpy as np
import pytest
import torch

from tuneline.model import device
from tuneline.train.monitoring import resource_usage

SIZE = 64 * 2**20


def hold(size):
    return np.ones(size, np.uint8)


@pytest.mark.parametrize("kernel", [True, False], ids=["high-water mark", "polled"])
def test_freed_memory_counts_and_memory_used_before_does_not(monkeypatch, kernel):
    if kernel and not resource_usage._reset_high_water_mark():
        pytest.skip("this system keeps no high-water mark that can be forgotten")
    if not kernel:
        monkeypatch.setattr(
            resource_usage, "CLEAR_REFS_FILE", resource_usage.CLEAR_REFS_FILE.with_name("nothing-like-this")
        )
    before, freed = hold(SIZE), hold(4 * SIZE)
    del freed
    usage = resource_usage.ResourceUsage()

    with usage():
        array = hold(2 * SIZE)
        for _ in range(20):  # long enough to be polled
            array = array[::-1].copy()
        del array

    peak = usage.metrics()["train_memory_bytes"]
    assert 2 * SIZE * 0.9 < peak < 4.5 * SIZE, "two copies at once, not the four that were freed before"
    assert usage.metrics()["memory_before_bytes"] > before.nbytes
    assert usage.metrics()["train_cpu_seconds"] > 0


@pytest.mark.parametrize("kind", ["cuda", "xpu", "npu"])
def test_on_an_accelerator_the_peak_since_the_start_of_the_loop_counts(monkeypatch, kind):
    """The functions of torch are replaced; only a machine with a GPU can test them."""
    memory = {"allocated": 100, "peak": 9_000}
    monkeypatch.setattr(device, "device_type", lambda: kind)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda: memory["allocated"])
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda: memory.update(peak=memory["allocated"]))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: memory["peak"])
    usage = resource_usage.ResourceUsage()

    with usage():
        memory["peak"] = 1_500

    assert usage.metrics()["train_memory_bytes"] == 1_400, "the peak of loading does not count"


def test_memory_on_mps_is_polled(monkeypatch):
    values = iter([100, 100, 900, *[400] * 1000])
    monkeypatch.setattr(device, "device_type", lambda: "mps")
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: next(values))
    usage = resource_usage.ResourceUsage()

    with usage():
        time.sleep(2 * resource_usage.POLL_SECONDS)

    assert usage.metrics()["train_memory_bytes"] == 800
