"""The device of this process, used for loading, training, evaluation and merging.

`torch.accelerator` returns the accelerator of this torch build: CUDA (including ROCm), MPS, XPU or NPU.
"""

import gc
import platform

import psutil
import torch

PEAK_MEMORY_DEVICES = ("cuda", "npu", "xpu")
"""Devices that report their peak memory; MPS reports current memory only."""


def device_type() -> str:
    """Return the device type: cuda, npu, xpu, mps or cpu."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def device_name() -> str:
    """Return the name of the device, for reports."""
    current = device_type()
    if current == "mps":
        return f"mps, {platform.processor() or platform.machine()}"
    return str(getattr(torch, current).get_device_name()) if current in PEAK_MEMORY_DEVICES else current


def synchronize() -> None:
    """Wait until the accelerator has finished all queued work."""
    if device_type() != "cpu":
        torch.accelerator.synchronize()


def memory_bytes() -> int:
    """Return the current memory use of the accelerator, or of this process without one."""
    current = device_type()
    if current in PEAK_MEMORY_DEVICES:
        return int(torch.accelerator.memory_allocated())
    return int(torch.mps.current_allocated_memory() if current == "mps" else psutil.Process().memory_info().rss)


def tracks_peak_memory() -> bool:
    """Return whether the accelerator reports its peak memory."""
    return device_type() in PEAK_MEMORY_DEVICES


def peak_memory_bytes() -> int:
    """Return the peak memory of the accelerator, or the current memory if it does not report a peak."""
    return int(torch.accelerator.max_memory_allocated()) if tracks_peak_memory() else memory_bytes()


def release_memory() -> None:
    """Release unused memory; models contain reference cycles, which only garbage collection frees."""
    gc.collect()
    if device_type() != "cpu":
        torch.accelerator.empty_cache()


def has_memory_for(num_bytes: float) -> bool:
    """Return whether the device has this much free memory; True if it shares the memory of the CPU."""
    return not tracks_peak_memory() or num_bytes <= torch.accelerator.get_memory_info()[0]
