"""Cross entropy at trained positions, weighted by tokens: pre-training and supervised fine-tuning."""

from typing import Any

from tuneline.train.objectives.base import (
    Inputs,
    LossOutput,
    Objective,
    TokenLossFunction,
    count_trained_tokens,
    objectives,
)


@objectives.register("likelihood")
class Likelihood(Objective):
    """The mean over all trained tokens of an optimizer step, independent of how they are distributed over rows."""

    name = "likelihood"

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of trained tokens."""
        return count_trained_tokens(inputs)

    def compute_loss(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Return the sum of the cross entropies (nats)."""
        losses, _ = token_losses(inputs)
        return LossOutput(losses.sum(), len(losses))
