"""Objectives of preference pairs: DPO and its variants with a reference; ORPO, SimPO and CPO without one.

The reference is the initial model of the training, for every method. Its log-probabilities are computed once before the
first step, so it needs neither a second model nor a forward pass per step. It is also exact if disabling the adapter
does not give the initial model (PiSSA, full training, an adapter that is trained further).
"""

from typing import Any, ClassVar

import torch

from tuneline.data.tokenization import preference_rows
from tuneline.train.collate import collate, move_to_device
from tuneline.train.objectives import losses
from tuneline.train.objectives.base import (
    DatasetSplits,
    Inputs,
    LossOutput,
    Objective,
    TokenLossFunction,
    count_segments,
    logps_by_segment,
    objectives,
)
from tuneline.train.objectives.losses import PairLogps

REFERENCE_COLUMNS = ("ref_chosen", "ref_rejected")


class PreferenceObjective(Objective):
    """Base class of objectives on pairs: forward pass, rewards and metrics."""

    needs_reference: ClassVar[bool] = False
    length_normalized: ClassVar[bool] = False
    """Rewards are per token."""

    def loss(self, pairs: PairLogps) -> torch.Tensor:
        """Return the loss per pair [P]."""
        raise NotImplementedError

    @property
    def nll_weight(self) -> float:
        """Weight of the cross entropy per token of the chosen answers, added to the loss of the pairs."""
        return 0.0

    @property
    def needs_reference_columns(self) -> bool:
        """The reference log-probabilities."""
        return self.needs_reference

    def compute_reference_columns(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Score all pairs with the initial model."""
        columns = dict[str, dict[str, list[Any]]]()
        for split, members in rows.items():
            logps = [_logps(preference_rows.flatten_row(row), token_losses, device) for row in members]
            columns[split] = {name: [pair[i] for pair in logps] for i, name in enumerate(REFERENCE_COLUMNS)}
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Concatenate pairs: chosen, rejected, chosen, ..., with the reference log-probabilities [P]."""
        reference = {name: torch.tensor([row.get(name, 0.0) for row in rows]) for name in REFERENCE_COLUMNS}
        return super().collate(rows) | reference

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of pairs."""
        return count_segments(inputs) // 2

    def compute_loss(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Return the loss, summed over pairs."""
        pairs = _pairs(inputs, token_losses)
        total = self.loss(pairs).sum()
        count = len(pairs.chosen)
        metrics = self._metrics(pairs)
        if self.nll_weight:
            nll = -pairs.chosen.sum() / pairs.chosen_tokens.sum()
            total = total + self.nll_weight * nll * count
            metrics["nll_loss"] = float(nll.detach()) * count
        return LossOutput(total, count, {name: (value, count) for name, value in metrics.items()})

    @torch.no_grad()
    def _metrics(self, pairs: PairLogps) -> dict[str, float]:
        lengths = (pairs.chosen_tokens, pairs.rejected_tokens) if self.length_normalized else (1, 1)
        ratios = (pairs.chosen_ratio / lengths[0], pairs.rejected_ratio / lengths[1])
        chosen, rejected = (self.config.beta * ratio for ratio in ratios)
        return {
            "rewards/chosen": float(chosen.sum()),
            "rewards/rejected": float(rejected.sum()),
            "rewards/accuracies": float((chosen > rejected).sum()),
            "rewards/margins": float((chosen - rejected).sum()),
            "logps/chosen": float(pairs.chosen.sum()),
            "logps/rejected": float(pairs.rejected.sum()),
        }


@objectives.register("dpo")
class DPO(PreferenceObjective):
    """Direct preference optimization, with one loss or a weighted sum of several."""

    name = "dpo"
    needs_reference = True

    def loss(self, pairs: PairLogps) -> torch.Tensor:
        """Return the weighted sum of the losses in the recipe."""
        config = self.config
        parts = [
            weight * losses.DPO_LOSSES[loss_type](pairs, config.beta, config.label_smoothing)
            for loss_type, weight in config.weighted_losses()
            if loss_type != "sft"
        ]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(pairs.chosen)

    @property
    def nll_weight(self) -> float:
        """Weight of loss type `sft`."""
        return sum(weight for loss_type, weight in self.config.weighted_losses() if loss_type == "sft")


@objectives.register("orpo")
class ORPO(PreferenceObjective):
    """The likelihood of the chosen answer and the odds ratio of both answers (Hong et al. 2024, arXiv:2403.07691)."""

    name = "orpo"
    length_normalized = True
    nll_weight = 1.0

    def loss(self, pairs: PairLogps) -> torch.Tensor:
        """Return the loss of the odds ratio."""
        return losses.odds_ratio(pairs, self.config.beta, 0.0)


@objectives.register("cpo")
class CPO(PreferenceObjective):
    """DPO with a uniform reference, and the likelihood of the chosen answer (Xu et al. 2024, arXiv:2401.08417)."""

    name = "cpo"

    @property
    def nll_weight(self) -> float:
        """Weight of the likelihood of the chosen answers."""
        return float(self.config.cpo_alpha)

    def loss(self, pairs: PairLogps) -> torch.Tensor:
        """Return the contrastive loss."""
        config, margin = self.config, pairs.chosen - pairs.rejected
        if config.loss_type == "hinge":
            return torch.relu(1 - config.beta * margin)
        return losses.label_smoothed_loss(config.beta * margin, config.label_smoothing)


@objectives.register("simpo")
class SimPO(PreferenceObjective):
    """Log-likelihoods per token, separated by a target margin (Meng et al. 2024, arXiv:2405.14734)."""

    name = "simpo"
    length_normalized = True

    @property
    def nll_weight(self) -> float:
        """Weight of the likelihood of the chosen answers; 0 in the paper."""
        return float(self.config.cpo_alpha)

    def loss(self, pairs: PairLogps) -> torch.Tensor:
        """Return the loss of the margin; `simpo_gamma` is the target reward margin, as in the paper."""
        config = self.config
        logits = config.beta * pairs.margin_per_token - config.simpo_gamma
        return losses.label_smoothed_loss(logits, config.label_smoothing)


def _pairs(inputs: Inputs, token_losses: TokenLossFunction) -> PairLogps:
    logps, counts = logps_by_segment(inputs, *token_losses(inputs))
    return PairLogps(
        *(logps[start::2] for start in (0, 1)),
        *(counts[start::2] for start in (0, 1)),
        *(inputs[name].to(logps) for name in REFERENCE_COLUMNS),
    )


def _logps(row: dict[str, Any], token_losses: TokenLossFunction, device: torch.device) -> list[float]:
    inputs = move_to_device(collate([row]), device)
    return [float(value) for value in logps_by_segment(inputs, *token_losses(inputs))[0]]
