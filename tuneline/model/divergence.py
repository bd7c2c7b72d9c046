"""How far two models lie apart, by their next-token distributions; no more than a few positions are held at a time.

The distributions of a long row over a large vocabulary take more memory than the model. So logits are asked for in
blocks of positions, and compared in chunks; where the second model is made from the first, those of the first wait on
disk.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MAX_BLOCK_LOGITS = 2**28
"""Logits that a model computes at once; beyond that, the row is computed again for the next positions."""

MAX_CHUNK_LOGITS = 2**22
"""Log-probabilities that are compared at once."""


@torch.no_grad()
def log_probabilities(
    logits: Callable[[torch.Tensor], torch.Tensor], positions: torch.Tensor, vocabulary: int
) -> Iterator[torch.Tensor]:
    """Yield log-probabilities of one row, chunk by chunk, [positions, vocabulary].

    Args:
        logits: Computes them at some positions, [positions, vocabulary].
        positions: Those to compare.
        vocabulary: Size of the vocabulary, as far as it is known; it sets how much is computed at once.
    """
    for block in positions.split(max(MAX_BLOCK_LOGITS // vocabulary, 1)):
        for chunk in logits(block).split(max(MAX_CHUNK_LOGITS // vocabulary, 1)):
            yield chunk.float().log_softmax(-1)


def vocabulary_size(model: Any) -> int:
    """Return the size of a model's vocabulary by its config; 2^17 where the config does not say it."""
    return int(getattr(model.config.get_text_config(), "vocab_size", None) or 2**17)


def spool_to_disk(chunks: Iterable[torch.Tensor], folder: Path) -> Iterator[torch.Tensor]:
    """Write chunks into a folder at once, and return an iterator that reads them again."""
    paths = []
    for number, chunk in enumerate(chunks):
        paths.append(folder / f"{number}.safetensors")
        save_file({"chunk": chunk.contiguous()}, paths[-1])
    return (load_file(path)["chunk"] for path in paths)


def compare_distributions(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Measure how far two models are apart, by chunks of their log-probabilities at the same positions.

    Returns:
        `kl` (nats per token), `greedy_agreement`, `positions`; nothing without positions.
    """
    kl, same, positions = 0.0, 0, 0
    for p, other in zip(before, after, strict=True):
        q = other.to(p.device)
        kl += float((p.exp() * (p - q)).sum(-1).double().sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += len(p)
    if not positions:
        return {}
    return {"kl": kl / positions, "greedy_agreement": same / positions, "positions": positions}
