"""Keeps the memory of one step for the next.

By default, glibc returns large blocks to the system after each use, and each new allocation causes page faults.
"""

import ctypes
import platform

from tuneline.model import device

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt(3)`."""

KEEP_MEMORY_SETTINGS = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
DEFAULT_SETTINGS = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 2**10, TOP_PAD: 128 * 2**10}


def unsupported_reason() -> str:
    """Return why freed memory cannot be kept on this machine, or an empty text."""
    if device.device_type() != "cpu":
        return "tensors are on an accelerator, whose allocator keeps freed memory"
    return "" if platform.libc_ver()[0] == "glibc" else "the C library is not glibc"


def enable() -> None:
    """Keep freed memory in the process."""
    _set(KEEP_MEMORY_SETTINGS)


def disable() -> None:
    """Restore the defaults of glibc, and return free memory to the system."""
    _set(DEFAULT_SETTINGS)
    ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> None:
    library = ctypes.CDLL(None)
    for parameter, value in values.items():
        library.mallopt(parameter, value)
