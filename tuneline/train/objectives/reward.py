"""Reward modelling: a head beside the model learns to give the chosen answer of a pair the larger number.

Bradley-Terry's loss on the values at the last tokens of both answers (Ouyang et al. 2022, arXiv:2203.02155).
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
    """Pairs of answers, judged by a head."""

    name = "reward"

    def attach(self, model: Any, seed: int) -> None:
        """Put a head beside the model, so that the optimizer and the checkpoints see it."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_module(REWARD_HEAD, value_head.build_value_head(model, std=INITIAL_STD))

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Take the head away."""
        head: ValueHead = getattr(model, REWARD_HEAD)
        delattr(model, REWARD_HEAD)
        return head.state_dict()

    def num_items(self, inputs: Inputs) -> int:
        """Count pairs."""
        return count_segments(inputs) // 2

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Sum the loss over pairs."""
        values = value_head.segment_end_values(model, getattr(model, REWARD_HEAD), inputs)
        chosen, rejected = values[0::2], values[1::2]
        losses = -logsigmoid(chosen - rejected)
        if self.config.center_rewards_coefficient:
            losses = losses + self.config.center_rewards_coefficient * (chosen + rejected) ** 2
        found = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
        }
        figures = {name: (float(value.detach().sum()), len(chosen)) for name, value in found.items()}
        return LossOutput(losses.sum(), len(chosen), figures)
