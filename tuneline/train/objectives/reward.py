"""Reward modeling: a value head is trained to score the chosen answer of a pair higher than the rejected one.

The loss is that of Bradley and Terry, on the values at the last tokens of both answers (Ouyang et al. 2022,
arXiv:2203.02155).
"""

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from tuneline.model import value_head
from tuneline.model.value_head import ValueHead
from tuneline.train.objectives.base import Inputs, LossOutput, Objective, TokenLossFunction, count_segments, objectives

REWARD_HEAD = "reward_head"
INITIAL_STD = 0.01


@objectives.register("reward")
class Reward(Objective):
    """The pairwise loss of a reward model."""

    name = "reward"

    def attach(self, model: Any, seed: int) -> None:
        """Add the head to the model as a module, so that optimizer and checkpoints include it."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_module(REWARD_HEAD, value_head.build_value_head(model, std=INITIAL_STD))

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Remove the head, and return its weights."""
        head: ValueHead = getattr(model, REWARD_HEAD)
        delattr(model, REWARD_HEAD)
        return head.state_dict()

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of pairs."""
        return count_segments(inputs) // 2

    def compute_loss(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Return the loss, summed over pairs."""
        values = value_head.segment_end_values(model, getattr(model, REWARD_HEAD), inputs)
        chosen, rejected = values[0::2], values[1::2]
        losses = -logsigmoid(chosen - rejected)
        if self.config.center_rewards_coefficient:
            losses = losses + self.config.center_rewards_coefficient * (chosen + rejected) ** 2
        rewards = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
        }
        metrics = {name: (float(value.detach().sum()), len(chosen)) for name, value in rewards.items()}
        return LossOutput(losses.sum(), len(chosen), metrics)
