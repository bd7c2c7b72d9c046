"""The device of this process, decided here alone: models are loaded, trained, judged, merged and measured on it.

torch.accelerator names the one accelerator that this build of torch computes on: CUDA (ROCm too), MPS, XPU, NPU.
"""

import gc
import platform

import psutil
import torch

PEAK_MEMORY_DEVICES = ("cuda", "npu", "xpu")
"""Devices whose allocator torch.accelerator asks for its peak; MPS tells what is in use, and no peak."""


def device_type() -> str:
    """Return the kind of device: cuda, npu, xpu, mps or cpu."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def device_name() -> str:
    """Return what the device calls itself, for reports."""
    found = device_type()
    if found == "mps":
        return f"mps, {platform.processor() or platform.machine()}"
    return str(getattr(torch, found).get_device_name()) if found in PEAK_MEMORY_DEVICES else found


def synchronize() -> None:
    """Wait until the accelerator has done all that it was told."""
    if device_type() != "cpu":
        torch.accelerator.synchronize()


def memory_bytes() -> int:
    """Return the memory in use now: of the accelerator, else of this process."""
    found = device_type()
    if found in PEAK_MEMORY_DEVICES:
        return int(torch.accelerator.memory_allocated())
    return int(torch.mps.current_allocated_memory() if found == "mps" else psutil.Process().memory_info().rss)


def tracks_peak_memory() -> bool:
    """Tell whether the accelerator keeps its peak."""
    return device_type() in PEAK_MEMORY_DEVICES


def peak_memory_bytes() -> int:
    """Return the most memory that the accelerator had in use; what is in use now, where no peak is kept."""
    return int(torch.accelerator.max_memory_allocated()) if tracks_peak_memory() else memory_bytes()


def release_memory() -> None:
    """Give back what no model holds any more; models hold themselves by cycles, which only a collection ends."""
    gc.collect()
    if device_type() != "cpu":
        torch.accelerator.empty_cache()


def has_memory_for(num_bytes: float) -> bool:
    """Tell whether so much fits beside what is on the device; yes where it shares the memory of the CPU."""
    return not tracks_peak_memory() or num_bytes <= torch.accelerator.get_memory_info()[0]
