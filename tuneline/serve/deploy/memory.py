"""Estimate whether a model fits into memory before it is loaded."""

import json
import struct
from math import prod
from pathlib import Path

import psutil
import torch

from tuneline.config.sections.serve import ServeConfig
from tuneline.model import device, precision
from tuneline.serve.deploy.located import LocatedModel

MEMORY_FACTOR = 1.2
"""Memory of a loaded model as a multiple of its weights: buffers, key-value cache and workspace."""

FIXED_BYTES = 64 << 20
"""Memory of a model in addition to its weights."""

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}


def needed_bytes(located: LocatedModel, config: ServeConfig) -> int:
    """Return the estimated memory of a model with its adapters, in bytes."""
    if located.gguf is not None:
        weights = located.gguf.stat().st_size
    else:
        itemsize = precision.inference_dtype(config.dtype).itemsize
        folders = [located.folder, *located.adapters.values()]
        files = {path.resolve() for folder in folders for path in folder.rglob("*.safetensors")}
        weights = sum(_tensor_bytes(path, itemsize) for path in files)
    return int(MEMORY_FACTOR * weights) + FIXED_BYTES


def available_bytes() -> int:
    """Return the free memory of the accelerator, or of this machine without one."""
    if device.tracks_peak_memory():
        return int(torch.accelerator.get_memory_info()[0])
    return int(psutil.virtual_memory().available)


def _tensor_bytes(path: Path, itemsize: int) -> int:
    """Return the memory of the tensors of a file; floating point tensors are converted to `itemsize` bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    return sum(
        prod(entry["shape"]) * (itemsize if entry["dtype"] in FLOATS else BYTES.get(entry["dtype"], 1))
        for entry in tensors
    )
