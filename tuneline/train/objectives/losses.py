"""Losses of preference pairs as functions of log-probabilities; tests compare the values with trl.

Each function takes the log-probabilities of the answers under the policy and the reference, and returns one loss per
pair.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

# P pairs


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities (nats) of the answers of pairs, summed over tokens; each field is [P]."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    ref_chosen: torch.Tensor
    """Under the reference; zero for losses without a reference."""

    ref_rejected: torch.Tensor

    @property
    def chosen_ratio(self) -> torch.Tensor:
        """Log-ratio of policy and reference for the chosen answer."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> torch.Tensor:
        """Log-ratio of policy and reference for the rejected answer."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> torch.Tensor:
        """Difference of the log-ratios of the chosen and the rejected answer."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def margin_per_token(self) -> torch.Tensor:
        """Difference of the log-ratios, each divided by the length of its answer."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


PairLoss = Callable[[PairLogps, float, float], torch.Tensor]
"""(pairs, beta, label_smoothing) -> [P]."""


def label_smoothed_loss(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the logistic loss with label smoothing: a fraction of the labels is assumed to be wrong."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290), conservative with smoothing (Mitchell 2023)."""
    return label_smoothed_loss(beta * p.margin, smoothing)


def sigmoid_norm(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """DPO normalized by answer length (Lambert et al. 2024, arXiv:2411.15124)."""
    return label_smoothed_loss(beta * p.margin_per_token, smoothing)


def hinge(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """The hinge loss of SLiC (Zhao et al. 2023, arXiv:2305.10425)."""
    return torch.relu(1 - beta * p.margin)


def ipo(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036), normalized by answer length."""
    return (p.margin_per_token - 1 / (2 * beta)) ** 2


def exo_pair(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """EXO (Ji et al. 2024, arXiv:2402.00856), equation 16; requires label smoothing above 0."""
    wins, losses = logsigmoid(beta * p.margin), logsigmoid(-beta * p.margin)
    epsilon = torch.tensor(smoothing, dtype=wins.dtype, device=wins.device)
    return wins.exp() * (wins - torch.log1p(-epsilon)) + losses.exp() * (losses - epsilon.log())


def nca_pair(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """NCA (Chen et al. 2024, arXiv:2402.05369)."""
    chosen, rejected = beta * p.chosen_ratio, beta * p.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def robust(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """Robust DPO for labels of which a fraction is wrong (Chowdhury et al. 2024, arXiv:2403.00409)."""
    logits = beta * p.margin
    return (-(1 - smoothing) * logsigmoid(logits) + smoothing * logsigmoid(-logits)) / (1 - 2 * smoothing)


def bco_pair(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """BCO on pairs without its running mean, as in trl (Jung et al. 2024, arXiv:2404.04656)."""
    return -logsigmoid(beta * p.chosen_ratio) - logsigmoid(-beta * p.rejected_ratio)


def sppo_hard(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """SPPO with hard labels (Wu et al. 2024, arXiv:2405.00675)."""
    return (p.chosen_ratio - 0.5 / beta) ** 2 + (p.rejected_ratio + 0.5 / beta) ** 2


def aot(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """AOT (Melnyk et al. 2024, arXiv:2406.05882): compares sorted margins within a batch."""
    policy, reference = p.chosen - p.rejected, p.ref_chosen - p.ref_rejected
    return label_smoothed_loss(beta * (policy.sort()[0] - reference.sort()[0]), smoothing)


def aot_unpaired(p: PairLogps, beta: float, smoothing: float) -> torch.Tensor:
    """AOT with chosen and rejected answers sorted separately."""
    return label_smoothed_loss(beta * (p.chosen_ratio.sort()[0] - p.rejected_ratio.sort()[0]), smoothing)


def apo_zero(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """APO for chosen answers better than the model's own (D'Oosterlinck et al. 2024, arXiv:2408.06266)."""
    return torch.sigmoid(-beta * p.chosen_ratio) + torch.sigmoid(beta * p.rejected_ratio)


def apo_down(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """APO for chosen answers worse than the model's own."""
    return torch.sigmoid(beta * p.chosen_ratio) + torch.sigmoid(-beta * p.margin)


def discopop(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414), equation 5, with its temperature of 0.05."""
    logits = beta * p.margin
    share = torch.sigmoid(logits / 0.05)
    return -logsigmoid(logits) * (1 - share) + torch.exp(-logits) * share


def odds_ratio(p: PairLogps, beta: float, _: float) -> torch.Tensor:
    """The odds ratio of ORPO (Hong et al. 2024, arXiv:2403.07691), normalized by answer length."""
    chosen, rejected = p.chosen / p.chosen_tokens, p.rejected / p.rejected_tokens
    return -beta * logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012)."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


DPO_LOSSES: dict[str, PairLoss] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
}
"""`train.loss_type` of stage `dpo` -> loss function."""
