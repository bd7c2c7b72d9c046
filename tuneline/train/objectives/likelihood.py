"""Cross entropy at trained positions, weighted by tokens: pre-training and supervised fine-tuning."""

from typing import Any

from tuneline.train.objectives.base import Inputs, Measured, Objective, TokenLosses, num_trained, objectives


@objectives.register("likelihood")
class Likelihood(Objective):
    """The mean over the trained tokens of an optimizer step, whatever the rows that they stand in."""

    name = "likelihood"

    def num_items(self, inputs: Inputs) -> int:
        """Count trained tokens."""
        return num_trained(inputs)

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLosses) -> Measured:
        """Sum the cross entropy (nats)."""
        losses, _ = token_losses(inputs)
        return Measured(losses.sum(), len(losses))
