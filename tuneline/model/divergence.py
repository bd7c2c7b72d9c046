"""Divergence between the next-token distributions of two models, with bounded memory.

The distributions of a long row over a large vocabulary take more memory than the model. Logits are therefore computed
in blocks of positions and compared in chunks. If the second model is made from the first, the distributions of the
first are spooled to disk.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MAX_BLOCK_LOGITS = 2**28
"""Maximum number of logits of one forward pass; the next positions need another pass over the row."""

MAX_CHUNK_LOGITS = 2**22
"""Maximum number of log-probabilities that are compared at once."""


@torch.no_grad()
def log_probabilities(
    logits: Callable[[torch.Tensor], torch.Tensor], positions: torch.Tensor, vocabulary_size: int
) -> Iterator[torch.Tensor]:
    """Yield log-probabilities of one row in chunks of [positions, vocabulary].

    Args:
        logits: Function from positions to logits [positions, vocabulary].
        positions: Positions to compare.
        vocabulary_size: Size of the vocabulary; determines block and chunk sizes.
    """
    for block in positions.split(max(MAX_BLOCK_LOGITS // vocabulary_size, 1)):
        for chunk in logits(block).split(max(MAX_CHUNK_LOGITS // vocabulary_size, 1)):
            yield chunk.float().log_softmax(-1)


def vocabulary_size(model: Any) -> int:
    """Return the vocabulary size from a model's config; 2^17 if the config does not have it."""
    return int(getattr(model.config.get_text_config(), "vocab_size", None) or 2**17)


def spool_to_disk(chunks: Iterable[torch.Tensor], folder: Path) -> Iterator[torch.Tensor]:
    """Write all chunks into a folder and return an iterator that reads them."""
    paths = []
    for number, chunk in enumerate(chunks):
        paths.append(folder / f"{number}.safetensors")
        save_file({"chunk": chunk.contiguous()}, paths[-1])
    return (load_file(path)["chunk"] for path in paths)


def compare_distributions(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Compare two models by chunks of their log-probabilities at the same positions.

    Returns:
        `kl` (nats per token), `greedy_agreement`, `positions`; empty without positions.
    """
    kl, agreements, positions = 0.0, 0, 0
    for p, other in zip(before, after, strict=True):
        q = other.to(p.device)
        kl += float((p.exp() * (p - q)).sum(-1).double().sum())
        agreements += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += len(p)
    if not positions:
        return {}
    return {"kl": kl / positions, "greedy_agreement": agreements / positions, "positions": positions}
