"""Tell a full disk from other failures of writing; torch and safetensors report it each by an error of its own."""

import errno
import os
from pathlib import Path

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What writing tensors raises."""

FULL = (errno.ENOSPC, errno.EDQUOT)
SAYS_FULL = ("No space left", "Disk quota exceeded")
MAY_BE_FULL = ("write failed", "PytorchStreamWriter failed", "inline_container.cc")
"""Words of torch, which does not tell why a write failed."""

PROBE_BYTES = 2**20


def is_full(error: Exception, folder: Path) -> bool:
    """Tell whether a write failed because the disk is full; call it before anything is deleted.

    Args:
        error: One of `WRITE_ERRORS`.
        folder: Where the write went.
    """
    if isinstance(error, OSError):
        return error.errno in FULL
    if any(word in str(error) for word in SAYS_FULL):
        return True
    return any(word in str(error) for word in MAY_BE_FULL) and not _has_room(folder)


def _has_room(folder: Path) -> bool:
    """Write a megabyte: free space alone does not show a quota."""
    probe = folder / "room.new"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True
