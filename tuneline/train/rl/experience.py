"""The data of one RL step: completions, rewards, log-probabilities of policy and reference, values of the critic."""

from dataclasses import dataclass, field

import torch

from tuneline.train.rl.roles import PromptCompletion

# N tokens of all completions, concatenated


@dataclass
class Experience:
    """Completions with their rewards; values per token are concatenated over completions."""

    spans: list[PromptCompletion]
    rewards: torch.Tensor
    """One per completion."""

    old_logps_N: torch.Tensor
    """Log-probabilities under the policy that generated the completions."""

    ref_logps_N: torch.Tensor | None = None
    """Log-probabilities under the reference."""

    advantages_N: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    values_N: torch.Tensor | None = None
    """Values of the critic before each token."""

    returns_N: torch.Tensor | None = None
    """Targets of the critic."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each completion."""
        return [len(completion) for _, completion in self.spans]

    def select(self, members: list[int]) -> "Experience":
        """Return the completions with these indices, in this order."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0).tolist()
        index = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in members]).to(self.old_logps_N.device)

        def pick(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[index]

        return Experience(
            [self.spans[i] for i in members],
            self.rewards[torch.tensor(members)],
            self.old_logps_N[index],
            pick(self.ref_logps_N),
            self.advantages_N[index],
            pick(self.values_N),
            pick(self.returns_N),
        )


def compute_gae(
    rewards_N: torch.Tensor, values_N: torch.Tensor, lengths: list[int], gamma: float, lam: float
) -> torch.Tensor:
    """Return generalized advantage estimates (Schulman et al. 2015, arXiv:1506.02438) per completion [N].

    Args:
        rewards_N: Reward of each token.
        values_N: Value of the critic before each token.
        lengths: Number of tokens of each completion.
        gamma: Discount per token.
        lam: Lambda of GAE: the decay of later errors.
    """
    advantages = []
    for rewards, values in zip(rewards_N.split(lengths), values_N.split(lengths), strict=True):
        estimate, estimates = 0.0, []
        errors = (rewards + gamma * torch.cat([values[1:], values.new_zeros(1)]) - values).tolist()
        for error in reversed(errors):
            estimate = error + gamma * lam * estimate
            estimates.append(estimate)
        advantages.append(torch.tensor(estimates[::-1], device=values_N.device))
    return torch.cat(advantages)


def whiten(values: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and standard deviation 1."""
    return (values - values.mean()) * torch.rsqrt(values.var(unbiased=False) + 1e-8)
