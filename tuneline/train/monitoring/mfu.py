"""The receipt of a training: where time went, what was computed, and which share of the machine's best that was."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tuneline.model import device

CPU_MATRIX_SIZE, ACCELERATOR_MATRIX_SIZE = 1024, 8192
"""Edge of the square matrices whose product is timed."""

NUM_TIMINGS = 3


class PhaseTimer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time under a name."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[f"{name}_seconds"] = time.monotonic() - start


def flops_per_token(model: Any) -> float:
    """Return the operations that a token costs in training: 4 N + 2 T.

    A product costs 2 operations a weight forward and 2 for the gradient of its input (N: all weights but those of an
    embedding that is only looked up); trained weights (T) 2 more for their own gradient. So LoRA costs 4 N and full
    training 6 N (Kaplan et al. 2020, arXiv:2001.08361). Attention is left out, and so is what a frozen beginning saves.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    looked_up = set() if tied else {id(part) for part in embeddings.parameters()}
    parts = [part for part in model.parameters() if id(part) not in looked_up]
    trained = sum(part.numel() for part in parts if part.requires_grad)
    return float(4 * sum(part.numel() for part in parts) + 2 * trained)


def measure_peak_flops(dtype: torch.dtype, kind: str) -> float:
    """Measure the operations a second of a large matrix product, best of three: what the machine can do at most."""
    edge = CPU_MATRIX_SIZE if kind == "cpu" else ACCELERATOR_MATRIX_SIZE
    one, other = (torch.randn(edge, edge, device=kind).to(dtype) for _ in range(2))
    return max(_rate(one, other) for _ in range(NUM_TIMINGS))


def _rate(one: torch.Tensor, other: torch.Tensor) -> float:
    device.synchronize()
    start = time.perf_counter()
    one @ other
    device.synchronize()
    return 2.0 * len(one) ** 3 / (time.perf_counter() - start)


def throughput_metrics(
    model: Any, tokens: float, seconds: float, dtype: torch.dtype, kind: str, *, before: float = 0
) -> dict[str, float]:
    """Return what was computed, and how fast.

    Args:
        model: What was trained.
        tokens: Seen by this process.
        seconds: That it trained.
        before: Tokens seen by processes that it went on from; they count in `flops` alone.
        dtype: Of the computation.
        kind: Of the device: `cpu`, `cuda`, ...

    Returns:
        `flops`, `flops_per_second`, `mfu` (their share of the best product on this machine), `tokens_per_second`.
    """
    a_token = flops_per_token(model)
    rate = tokens * a_token / max(seconds, 1e-9)
    return {
        "flops": (before + tokens) * a_token,
        "flops_per_second": rate,
        "mfu": rate / measure_peak_flops(dtype, kind),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }
