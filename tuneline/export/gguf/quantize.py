"""Data types of a GGUF file, and quantization by llama.cpp's own functions.

`f16` and `q8_0` give every matrix one type. `q4_k_m` is llama.cpp's mixture: Q4_K, and Q6_K for the output and for the
attention values and down projections of the first, the last, and every third other layer.
"""

import ctypes
import functools
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch

from tuneline.errors import VerificationError
from tuneline.export.gguf.llama_server import check_installed
from tuneline.export.gguf.weights import Source

Kind = Literal["f16", "q8_0", "q4_k_m"]
Type = gguf.GGMLQuantizationType
Name = gguf.MODEL_TENSOR

FILE_TYPES: dict[Kind, gguf.LlamaFileType] = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
FLOAT32_TENSORS = (Name.POS_EMBD, Name.ROPE_FREQS, Name.FFN_GATE_INP)
"""Tensors that llama.cpp reads in float32, in addition to vectors and norms."""

CHECKED_ROWS = 64
MAX_RELATIVE_ERROR = 0.2
"""Maximum norm of the quantization error, relative to the norm of the weights; 0.07 for 4 bits and normal weights."""

FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0, Type.Q8_0: Type.F16}
"""Types for rows that are not a multiple of the block size, as in llama.cpp."""


def gguf_file_name(kind: Kind) -> str:
    """Return the name of the GGUF file in an export folder."""
    return f"model-{kind}.gguf"


def tensor_type(source: Source, kind: Kind, config: Any, *, tied: bool, blocks: int) -> gguf.GGMLQuantizationType:
    """Return the type of a tensor.

    Args:
        source: The tensor.
        kind: Type of the file.
        config: Model config.
        tied: Whether the output is computed by the token embeddings.
        blocks: Number of layers.
    """
    if len(source.shape) == 1 or "norm" in source.name or source.kind in FLOAT32_TENSORS:
        return Type.F32
    if kind == "f16":
        return Type.F16
    result = Type.Q8_0 if kind == "q8_0" else _mixture_type(source, config, tied=tied, blocks=blocks)
    while source.shape[-1] % gguf.GGML_QUANT_SIZES[result][0]:
        result = FALLBACKS.get(result, Type.F16)
    return result


def _mixture_type(source: Source, config: Any, *, tied: bool, blocks: int) -> gguf.GGMLQuantizationType:
    """Return the type in llama.cpp's mixture Q4_K_M."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    match = re.match(r"blk\.(\d+)\.", source.name)
    wide = match is not None and _uses_more_bits(int(match[1]), blocks)
    if source.kind == Name.OUTPUT or (tied and source.kind == Name.TOKEN_EMBD):
        return Type.Q6_K
    if source.kind in (Name.ATTN_V, Name.ATTN_QKV):
        return Type.Q8_0 if experts == 8 else Type.Q6_K if wide else Type.Q4_K
    if source.kind == Name.ATTN_K and experts == 8:
        return Type.Q8_0
    if source.kind == Name.ATTN_OUT and experts == 8:
        return Type.Q5_K
    return Type.Q6_K if wide and source.kind in (Name.FFN_DOWN, Name.FFN_DOWN_EXP) else Type.Q4_K


def _uses_more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def encoded_shape(shape: tuple[int, ...], data_type: gguf.GGMLQuantizationType) -> tuple[int, ...]:
    """Return the shape of the encoded tensor: of numbers, or of bytes for quantized types."""
    if data_type in (Type.F32, Type.F16):
        return shape
    return gguf.quant_shape_to_byte_shape(shape, data_type)


def encode(tensor: torch.Tensor, data_type: gguf.GGMLQuantizationType, name: str) -> npt.NDArray[Any]:
    """Return the encoded tensor.

    Raises:
        VerificationError: A value is not finite, or too large for float16.
        SourceError: The type needs xllamacpp, which is not installed.
    """
    values = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
    if not np.isfinite(values).all():
        raise VerificationError(f"gguf: {name} contains values that are not finite. Train the model again.")
    if data_type == Type.F32:
        return values
    if data_type == Type.F16:
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise VerificationError(
                f"gguf: f16: {name} has values above 65504, the maximum of float16. Set gguf: q8_0."
            )
        return values.astype(np.float16)
    if data_type == Type.Q8_0:
        return gguf.quants.quantize(values, data_type)
    return _quantize(values, data_type)


def _quantize(values: npt.NDArray[np.float32], data_type: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Quantize by llama.cpp's `ggml_quantize_chunk`."""
    rows, columns = math.prod(values.shape[:-1]), values.shape[-1]
    result = np.empty(encoded_shape(values.shape, data_type), dtype=np.uint8)
    size = _library().ggml_quantize_chunk(
        int(data_type), values.ctypes.data, result.ctypes.data, 0, rows, columns, None
    )
    if size != result.nbytes:
        raise VerificationError(f"gguf: llama.cpp wrote {size} bytes of {data_type.name}, expected {result.nbytes}.")
    _check_rows(values.reshape(rows, columns), result.reshape(rows, -1), data_type)
    return result


def _check_rows(
    values: npt.NDArray[np.float32], encoded: npt.NDArray[np.uint8], data_type: gguf.GGMLQuantizationType
) -> None:
    """Compare some rows with what the encoded rows mean to the `gguf` package, which is another implementation."""
    picked = np.unique(np.linspace(0, len(values) - 1, CHECKED_ROWS).astype(int))
    expected, actual = values[picked], gguf.quants.dequantize(encoded[picked], data_type)
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(actual - expected))
    if not error <= MAX_RELATIVE_ERROR * norm:
        raise VerificationError(
            f"gguf: {data_type.name} changes weights by {error / max(norm, 1e-30):.0%}, expected at most "
            f"{MAX_RELATIVE_ERROR:.0%}. Install another version of xllamacpp, or set gguf: q8_0."
        )


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the library of xllamacpp, which exports llama.cpp's C functions."""
    check_installed()
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    path = next(Path(spec.origin).parent.glob("xllamacpp*.so"))
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library
