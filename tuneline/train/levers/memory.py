"""Keep the memory of one step for the next.

glibc gives large blocks back to the system after each use, and takes page faults when it asks for them again.
"""

import ctypes
import platform

from tuneline.model import device

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt(3)`."""

KEEP_MEMORY_SETTINGS = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
DEFAULT_SETTINGS = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 2**10, TOP_PAD: 128 * 2**10}


def unsupported_reason() -> str:
    """Return what keeps memory from being kept on this machine, or an empty text."""
    if device.device_type() != "cpu":
        return "tensors live on an accelerator, whose allocator keeps them"
    return "" if platform.libc_ver()[0] == "glibc" else "the C library is not glibc"


def enable() -> None:
    """Keep what is freed."""
    _set(KEEP_MEMORY_SETTINGS)


def disable() -> None:
    """Go back to glibc's ways, and give back what is free."""
    _set(DEFAULT_SETTINGS)
    ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> None:
    library = ctypes.CDLL(None)
    for parameter, value in values.items():
        library.mallopt(parameter, value)
