"""What a step learns from: answers, their rewards, and what policy, reference and critic said of each token."""

from dataclasses import dataclass, field

import torch

from tuneline.train.rl.roles import PromptCompletion

# N tokens of all answers, end to end


@dataclass
class Experience:
    """Answers in order; values a token are laid end to end."""

    spans: list[PromptCompletion]
    rewards: torch.Tensor
    """One an answer."""

    old_logps_N: torch.Tensor
    """Log-probabilities under the policy that answered."""

    ref_logps_N: torch.Tensor | None = None
    """The same under the reference."""

    advantages_N: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    values_N: torch.Tensor | None = None
    """The critic's, before each token."""

    returns_N: torch.Tensor | None = None
    """What the critic should have said."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer) for _, answer in self.spans]

    def part(self, members: list[int]) -> "Experience":
        """Return some answers, in the order given."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0).tolist()
        pick = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in members]).to(self.old_logps_N.device)

        def of(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[pick]

        return Experience(
            [self.spans[i] for i in members],
            self.rewards[torch.tensor(members)],
            self.old_logps_N[pick],
            of(self.ref_logps_N),
            self.advantages_N[pick],
            of(self.values_N),
            of(self.returns_N),
        )


def compute_gae(
    rewards_N: torch.Tensor, values_N: torch.Tensor, lengths: list[int], gamma: float, lam: float
) -> torch.Tensor:
    """Return generalised advantage estimates (Schulman et al. 2015, arXiv:1506.02438), answer by answer [N].

    Args:
        rewards_N: Reward that each token earned.
        values_N: What the critic expected before it.
        lengths: Tokens of each answer.
        gamma: Discount a token.
        lam: Share of later errors that counts.
    """
    found = []
    for rewards, values in zip(rewards_N.split(lengths), values_N.split(lengths), strict=True):
        later, estimates = 0.0, []
        errors = (rewards + gamma * torch.cat([values[1:], values.new_zeros(1)]) - values).tolist()
        for error in reversed(errors):
            later = error + gamma * lam * later
            estimates.append(later)
        found.append(torch.tensor(estimates[::-1], device=values_N.device))
    return torch.cat(found)


def whiten(values: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and spread 1."""
    return (values - values.mean()) * torch.rsqrt(values.var(unbiased=False) + 1e-8)
