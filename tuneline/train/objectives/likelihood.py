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
    """The mean over the trained tokens of an optimizer step, whatever the rows that they stand in."""

    name = "likelihood"

    def num_items(self, inputs: Inputs) -> int:
        """Count trained tokens."""
        return count_trained_tokens(inputs)

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Sum the cross entropy (nats)."""
        losses, _ = token_losses(inputs)
        return LossOutput(losses.sum(), len(losses))
