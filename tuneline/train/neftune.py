"""NEFTune: noise on the embeddings during training (Jain et al. 2023, arXiv:2310.05914).

transformers scales the noise by the length of the row. In a packed row that is the length of all examples together,
which makes the noise weaker than in the paper. Here the noise is scaled by the length of each example.
"""

from typing import Any

import torch
from torch import nn


class NeftuneNoise:
    """Adds uniform noise of +-alpha / sqrt(tokens of the example * width) to the output of the embeddings."""

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None
        embeddings: nn.Module = model.get_input_embeddings()
        self._hook = embeddings.register_forward_hook(self._add)

    def set_example_bounds(self, bounds: torch.Tensor) -> None:
        """Set the boundaries of the examples in the next row.

        Args:
            bounds: [examples + 1], as `cu_seq_lens_q`.
        """
        lengths = bounds.diff()
        self._lengths = lengths.repeat_interleave(lengths)

    def remove(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()

    def _add(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self._lengths is None or output.shape[1] != len(self._lengths):
            return output
        magnitude_T = self._alpha / (self._lengths.to(output.device) * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * magnitude_T[None, :, None].to(output.dtype)
