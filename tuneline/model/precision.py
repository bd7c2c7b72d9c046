"""Which floating-point type to hold the weights in, by what the hardware really does fast.

CPU flags do not tell: avx512_bf16 without AMX computes bfloat16 at half the float32 rate. So two matrix products race.
"""

import time

import torch

RACE_SHAPE = (512, 576, 1536)
RACE_ROUNDS = 20
MUST_BE_FASTER_BY = 0.8


def choose(requested: str, *, trains_all: bool) -> tuple[torch.dtype, str]:
    """Pick the type of the weights.

    Args:
        requested: `auto`, `float32` or `bfloat16`.
        trains_all: Every weight is trained; those stay in float32.

    Returns:
        The type, and the reason in words.
    """
    if requested != "auto":
        return getattr(torch, requested), "as the recipe says"
    if trains_all:
        return torch.float32, "every weight is trained, and trained weights are held in float32"
    if torch.cuda.is_available():
        fast = torch.cuda.get_device_capability() >= (8, 0)
        why = f"CUDA compute capability {torch.cuda.get_device_capability()}"
        return (torch.bfloat16, why) if fast else (torch.float32, why + " is below (8, 0)")
    return race()


def race() -> tuple[torch.dtype, str]:
    """Time products of the sizes of a small model's layers in both types; the CPU's own clock, best of three."""
    seconds = {dtype: min(_time(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    dtype = torch.bfloat16 if ratio < MUST_BE_FASTER_BY else torch.float32
    return dtype, f"bfloat16 took {ratio:.2f} times as long as float32 in a race of matrix products"


def _time(dtype: torch.dtype) -> float:
    rows, inner, outer = RACE_SHAPE
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    x @ weight.T
    start = time.process_time()
    for _ in range(RACE_ROUNDS):
        x @ weight.T
    return time.process_time() - start
