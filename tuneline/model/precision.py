"""Which floating-point types a model is held, trained and computed in, by what the device really does fast.

Mixed precision (Micikevicius et al. 2017, arXiv:1710.03740): frozen weights and the computation in 16 bits, trained
weights in float32. A CPU's flags do not tell what is fast on it: avx512_bf16 without AMX computes bfloat16 at half the
rate of float32. So two matrix products race.
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
    """The types of a run, and why."""

    weights: torch.dtype
    """Of weights that are not trained; those that are must be loaded in `trained`."""

    trained: torch.dtype
    """Of weights that are trained."""

    autocast: torch.dtype | None
    """Type in which matrix products are computed from weights of several types; None computes as they are."""

    reason: str


def choose_precision(requested: str, *, trains_all: bool, model_dtype: torch.dtype | None = None) -> Precision:
    """Pick the types by the recipe and the device.

    Args:
        requested: `load.dtype` of the recipe.
        trains_all: Every weight is trained.
        model_dtype: Type that the model was published in, as its config says.

    Raises:
        RecipeError: The device cannot train in the type that the recipe asks for.
    """
    check_dtype(requested)
    if requested == "float32":
        return Precision(torch.float32, torch.float32, None, "as the recipe says")
    if requested == "pure_bfloat16":
        return Precision(torch.bfloat16, torch.bfloat16, None, "as the recipe says, trained weights too")
    told = "as the recipe says; trained weights in float32"
    half, reason = _fastest(device.device_type()) if requested == "auto" else (DTYPES[requested], told)
    if half == torch.float32:
        return Precision(half, half, None, reason)
    _warn_of_overflow(half, model_dtype)
    return Precision(torch.float32 if trains_all else half, torch.float32, half, reason)


def check_dtype(requested: str) -> None:
    """Check that the device trains in the type that a recipe asks for.

    Raises:
        RecipeError: It does not.
    """
    if requested in ("bfloat16", "pure_bfloat16"):
        _check_bfloat16("load.dtype", requested)
    elif requested == "float16" and device.device_type() == "cpu":
        raise RecipeError(
            "load.dtype: float16 needs a loss scaler, which there is only for GPUs and NPUs, and the device is a CPU. "
            "Set load.dtype: auto, bfloat16 or float32."
        )


def inference_dtype(requested: str) -> torch.dtype:
    """Return the type in which a model answers questions: `auto` takes bfloat16 on a GPU that has it, else float32.

    Args:
        requested: `evaluate.dtype` of the recipe.

    Raises:
        RecipeError: The device does not compute in the type that the recipe asks for.
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
    able, why = _supports_bfloat16(kind)
    otherwise = torch.float32 if kind == "mps" else torch.float16  # without bfloat16, mps gains little by 16 bits
    return torch.bfloat16 if able else otherwise, f"{why}; trained weights in float32"


def _supports_bfloat16(kind: str) -> tuple[bool, str]:
    """Return whether a device computes bfloat16 itself, and how that is known."""
    match kind:
        case "cuda":
            capability = torch.cuda.get_device_capability()
            return capability >= (8, 0), f"CUDA compute capability {capability}, bfloat16 from (8, 0)"
        case "npu" | "xpu":
            able = bool(getattr(torch, kind).is_bf16_supported())
            return able, f"{kind} {'has' if able else 'lacks'} bfloat16"
        case "mps":
            able = torch.backends.mps.is_macos_or_newer(14, 0)
            return able, f"mps {'has' if able else 'lacks'} bfloat16, which comes with macOS 14"
        case _:
            return True, "the CPU has bfloat16, at whatever speed"


def _check_bfloat16(key: str, requested: str) -> None:
    able, why = _supports_bfloat16(device.device_type())
    if not able:
        raise RecipeError(f"{key}: {requested} is not for this device: {why}. Set {key}: auto.")


def _warn_of_overflow(half: torch.dtype, model_dtype: torch.dtype | None) -> None:
    if half == torch.float16 and model_dtype == torch.bfloat16:
        logger.warning(
            "load.dtype: the model was made in bfloat16 and is computed in float16, where values above 65504 overflow: "
            "watch the loss for NaN, or set load.dtype: float32."
        )


def benchmark_dtypes() -> tuple[torch.dtype, str]:
    """Time products of the sizes of a small model's layers in both types; the CPU's own clock, best of three."""
    seconds = {dtype: min(_time(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    dtype = torch.bfloat16 if ratio < MAX_TIME_RATIO else torch.float32
    return dtype, f"bfloat16 took {ratio:.2f} times as long as float32 in a race of matrix products"


def _time(dtype: torch.dtype) -> float:
    rows, inner, outer = BENCHMARK_SHAPE
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    x @ weight.T
    start = time.process_time()
    for _ in range(BENCHMARK_ROUNDS):
        x @ weight.T
    return time.process_time() - start
