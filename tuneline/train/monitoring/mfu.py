"""Duration of the training phases, FLOPs, and MFU: the share of the peak rate that this machine reaches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tuneline.model import device

CPU_MATRIX_SIZE, ACCELERATOR_MATRIX_SIZE = 1024, 8192
"""Size of the square matrices whose product is timed."""

NUM_TIMINGS = 3


class PhaseTimer:
    """Measures the seconds of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the duration of the block."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[f"{name}_seconds"] = time.monotonic() - start


def flops_per_token(model: Any) -> float:
    """Return the FLOPs of training on one token: 4 N + 2 T.

    A matrix product needs 2 operations per weight in the forward pass and 2 for the gradient of its input (N: all
    weights except those of an untied embedding); trained weights (T) need 2 more for their own gradient. LoRA costs
    4 N, full training 6 N (Kaplan et al. 2020, arXiv:2001.08361). Attention is not counted, and the skipped backward
    pass of frozen first layers is not subtracted.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    uncounted = set() if tied else {id(part) for part in embeddings.parameters()}
    parts = [part for part in model.parameters() if id(part) not in uncounted]
    trained = sum(part.numel() for part in parts if part.requires_grad)
    return float(4 * sum(part.numel() for part in parts) + 2 * trained)


def measure_peak_flops(dtype: torch.dtype, kind: str) -> float:
    """Measure the FLOP/s of a large matrix product, best of three: the peak rate of this machine."""
    size = CPU_MATRIX_SIZE if kind == "cpu" else ACCELERATOR_MATRIX_SIZE
    a, b = (torch.randn(size, size, device=kind).to(dtype) for _ in range(2))
    return max(_time_product(a, b) for _ in range(NUM_TIMINGS))


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    device.synchronize()
    start = time.perf_counter()
    a @ b
    device.synchronize()
    return 2.0 * len(a) ** 3 / (time.perf_counter() - start)


def throughput_metrics(
    model: Any, tokens: float, seconds: float, dtype: torch.dtype, kind: str, *, before: float = 0
) -> dict[str, float]:
    """Return FLOPs and throughput of a training.

    Args:
        model: The trained model.
        tokens: Number of tokens that this process trained on.
        seconds: Duration of the training in this process.
        before: Tokens of earlier processes of a resumed training; they count in `flops` only.
        dtype: Of the computation.
        kind: Of the device: `cpu`, `cuda`, ...

    Returns:
        `flops`, `flops_per_second`, `mfu` (share of the measured peak rate), `tokens_per_second`.
    """
    per_token = flops_per_token(model)
    rate = tokens * per_token / max(seconds, 1e-9)
    return {
        "flops": (before + tokens) * per_token,
        "flops_per_second": rate,
        "mfu": rate / measure_peak_flops(dtype, kind),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }
