"""Choose the dtypes of weights, training and computation for the device.

Mixed precision (Micikevicius et al. 2017, arXiv:1710.03740): frozen weights and computation in 16 bits, trained weights
in float32. CPU flags do not tell which dtype is fast: avx512_bf16 without AMX computes bfloat16 at half the speed of
float32. On CPUs the choice is therefore measured with matrix products.
"""

import logging
import time
from dataclasses import dataclass

import torch

from tuneline.errors import RecipeError
from tuneline.model import device

logger = logging.getLogger(__name__)

BENCHMARK_SHAPE = (512, 576, 1536)
BENCHMARK_ROUNDS = 20
MAX_TIME_RATIO = 0.8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run, and the reason for them."""

    weights: torch.dtype
    """Dtype of frozen weights."""

    trained: torch.dtype
    """Dtype of trained weights."""

    autocast: torch.dtype | None
    """Compute dtype of matrix products; None disables autocast."""

    reason: str


def choose_precision(requested: str, *, trains_all: bool, model_dtype: torch.dtype | None = None) -> Precision:
    """Choose dtypes by the recipe and the device.

    Args:
        requested: `load.dtype` of the recipe.
        trains_all: Whether every weight is trained.
        model_dtype: Dtype in the model's config.

    Raises:
        RecipeError: The device cannot train in the requested dtype.
    """
    check_dtype(requested)
    if requested == "float32":
        return Precision(torch.float32, torch.float32, None, "set in the recipe")
    if requested == "pure_bfloat16":
        return Precision(torch.bfloat16, torch.bfloat16, None, "set in the recipe, for trained weights too")
    note = "set in the recipe; trained weights in float32"
    half, reason = _fastest(device.device_type()) if requested == "auto" else (DTYPES[requested], note)
    if half == torch.float32:
        return Precision(half, half, None, reason)
    _warn_of_overflow(half, model_dtype)
    return Precision(torch.float32 if trains_all else half, torch.float32, half, reason)


def check_dtype(requested: str) -> None:
    """Check that the device can train in the requested dtype.

    Raises:
        RecipeError: It cannot.
    """
    if requested in ("bfloat16", "pure_bfloat16"):
        _check_bfloat16("load.dtype", requested)
    elif requested == "float16" and device.device_type() == "cpu":
        raise RecipeError(
            "load.dtype: float16 needs a loss scaler, which exists for GPUs and NPUs only, but the device is a CPU. "
            "Set load.dtype: auto, bfloat16 or float32."
        )


def inference_dtype(requested: str) -> torch.dtype:
    """Return the dtype for inference; `auto` is bfloat16 on an accelerator that supports it, else float32.

    Args:
        requested: `evaluate.dtype` of the recipe.

    Raises:
        RecipeError: The device does not support the requested dtype.
    """
    if requested == "auto":
        kind = device.device_type()
        return torch.bfloat16 if kind != "cpu" and _supports_bfloat16(kind)[0] else torch.float32
    if requested == "bfloat16":
        _check_bfloat16("evaluate.dtype", requested)
    return DTYPES[requested]


def _fastest(kind: str) -> tuple[torch.dtype, str]:
    if kind == "cpu":
        half, reason = benchmark_dtypes()
        return half, f"{reason}; trained weights in float32"
    is_supported, reason = _supports_bfloat16(kind)
    fallback = torch.float32 if kind == "mps" else torch.float16  # without bfloat16, mps gains little from 16 bits
    return torch.bfloat16 if is_supported else fallback, f"{reason}; trained weights in float32"


def _supports_bfloat16(kind: str) -> tuple[bool, str]:
    """Return whether a device supports bfloat16 in hardware, and the reason."""
    match kind:
        case "cuda":
            capability = torch.cuda.get_device_capability()
            return capability >= (8, 0), f"CUDA compute capability {capability}, bfloat16 from (8, 0)"
        case "npu" | "xpu":
            is_supported = bool(getattr(torch, kind).is_bf16_supported())
            return is_supported, f"{kind} {'supports' if is_supported else 'does not support'} bfloat16"
        case "mps":
            is_supported = torch.backends.mps.is_macos_or_newer(14, 0)
            verb = "supports" if is_supported else "does not support"
            return is_supported, f"mps {verb} bfloat16, which needs macOS 14"
        case _:
            return True, "CPUs support bfloat16, some of them slowly"


def _check_bfloat16(key: str, requested: str) -> None:
    is_supported, reason = _supports_bfloat16(device.device_type())
    if not is_supported:
        raise RecipeError(f"{key}: {requested} is not supported by this device: {reason}. Set {key}: auto.")


def _warn_of_overflow(half: torch.dtype, model_dtype: torch.dtype | None) -> None:
    if half == torch.float16 and model_dtype == torch.bfloat16:
        logger.warning(
            "load.dtype: the model was published in bfloat16 and is computed in float16, where values above 65504 "
            "overflow: watch the loss for NaN, or set load.dtype: float32."
        )


def benchmark_dtypes() -> tuple[torch.dtype, str]:
    """Time matrix products of a small model's layer sizes in both dtypes: CPU time, best of three."""
    seconds = {dtype: min(_time(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    dtype = torch.bfloat16 if ratio < MAX_TIME_RATIO else torch.float32
    return dtype, f"bfloat16 took {ratio:.2f} times as long as float32 in a benchmark of matrix products"


def _time(dtype: torch.dtype) -> float:
    rows, inner, outer = BENCHMARK_SHAPE
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    x @ weight.T
    start = time.process_time()
    for _ in range(BENCHMARK_ROUNDS):
        x @ weight.T
    return time.process_time() - start
