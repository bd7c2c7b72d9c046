"""Pairs of answers: DPO and its kin, with a reference; ORPO, SimPO and CPO, without one.

The reference is the model as the training starts, whatever the method: its log-probabilities are computed once, before
the first step, so that it needs neither a second model nor a pass a step, and is exact also where an adapter that is
switched off is not the model that the training starts from (PiSSA, a whole model, an adapter that is trained further).
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
    """What stages of pairs share: the pass, the rewards, the figures."""

    needs_reference: ClassVar[bool] = False
    length_normalized: ClassVar[bool] = False
    """Rewards are taken a token."""

    def loss(self, found: PairLogps) -> torch.Tensor:
        """Return a loss a pair [P]."""
        raise NotImplementedError

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen answers' cross entropy a token, beside the loss of the pairs."""
        return 0.0

    @property
    def needs_reference_columns(self) -> bool:
        """The reference's scores."""
        return self.needs_reference

    def prepare(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Score all pairs by the model as it starts."""
        made = dict[str, dict[str, list[Any]]]()
        for split, members in rows.items():
            scores = [_scores(preference_rows.flatten_row(row), token_losses, device) for row in members]
            made[split] = {name: [score[i] for score in scores] for i, name in enumerate(REFERENCE_COLUMNS)}
        return made

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Lay pairs end to end: chosen, rejected, chosen, ..., with the reference's scores [P]."""
        scores = {name: torch.tensor([row.get(name, 0.0) for row in rows]) for name in REFERENCE_COLUMNS}
        return super().collate(rows) | scores

    def num_items(self, inputs: Inputs) -> int:
        """Count pairs."""
        return count_segments(inputs) // 2

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Sum the loss over pairs."""
        found = _pairs(inputs, token_losses)
        total = self.loss(found).sum()
        count = len(found.chosen)
        figures = self._figures(found)
        if self.nll_weight:
            nll = -found.chosen.sum() / found.chosen_tokens.sum()
            total = total + self.nll_weight * nll * count
            figures["nll_loss"] = float(nll.detach()) * count
        return LossOutput(total, count, {name: (value, count) for name, value in figures.items()})

    @torch.no_grad()
    def _figures(self, found: PairLogps) -> dict[str, float]:
        lengths = (found.chosen_tokens, found.rejected_tokens) if self.length_normalized else (1, 1)
        ratios = (found.chosen_ratio / lengths[0], found.rejected_ratio / lengths[1])
        chosen, rejected = (self.config.beta * ratio for ratio in ratios)
        return {
            "rewards/chosen": float(chosen.sum()),
            "rewards/rejected": float(rejected.sum()),
            "rewards/accuracies": float((chosen > rejected).sum()),
            "rewards/margins": float((chosen - rejected).sum()),
            "logps/chosen": float(found.chosen.sum()),
            "logps/rejected": float(found.rejected.sum()),
        }


@objectives.register("dpo")
class DPO(PreferenceObjective):
    """Direct preference optimisation, by one loss or a weighted sum of several."""

    name = "dpo"
    needs_reference = True

    def loss(self, found: PairLogps) -> torch.Tensor:
        """Add up the losses that the recipe names."""
        config = self.config
        parts = [
            weight * losses.DPO_LOSSES[kind](found, config.beta, config.label_smoothing)
            for kind, weight in config.weighted_losses()
            if kind != "sft"
        ]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(found.chosen)

    @property
    def nll_weight(self) -> float:
        """Weight of loss type `sft`."""
        return sum(weight for kind, weight in self.config.weighted_losses() if kind == "sft")


@objectives.register("orpo")
class ORPO(PreferenceObjective):
    """The chosen answer's likelihood, and the odds ratio of both answers (Hong et al. 2024, arXiv:2403.07691)."""

    name = "orpo"
    length_normalized = True
    nll_weight = 1.0

    def loss(self, found: PairLogps) -> torch.Tensor:
        """Return the odds ratio's part."""
        return losses.odds_ratio(found, self.config.beta, 0.0)


@objectives.register("cpo")
class CPO(PreferenceObjective):
    """DPO with a uniform reference, and the chosen answer's likelihood (Xu et al. 2024, arXiv:2401.08417)."""

    name = "cpo"

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen answers' likelihood."""
        return float(self.config.cpo_alpha)

    def loss(self, found: PairLogps) -> torch.Tensor:
        """Return the contrastive part."""
        config, margin = self.config, found.chosen - found.rejected
        if config.loss_type == "hinge":
            return torch.relu(1 - config.beta * margin)
        return losses.label_smoothed_loss(config.beta * margin, config.label_smoothing)


@objectives.register("simpo")
class SimPO(PreferenceObjective):
    """Log-likelihoods a token, apart by a margin (Meng et al. 2024, arXiv:2405.14734)."""

    name = "simpo"
    length_normalized = True

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen answers' likelihood; none in the paper."""
        return float(self.config.cpo_alpha)

    def loss(self, found: PairLogps) -> torch.Tensor:
        """Return the loss of the margin; `simpo_gamma` is the target margin of rewards, as in the paper."""
        config = self.config
        logits = config.beta * found.margin_per_token - config.simpo_gamma
        return losses.label_smoothed_loss(logits, config.label_smoothing)


def _pairs(inputs: Inputs, token_losses: TokenLossFunction) -> PairLogps:
    logps, counts = logps_by_segment(inputs, *token_losses(inputs))
    return PairLogps(
        *(logps[start::2] for start in (0, 1)),
        *(counts[start::2] for start in (0, 1)),
        *(inputs[name].to(logps) for name in REFERENCE_COLUMNS),
    )


def _scores(row: dict[str, Any], token_losses: TokenLossFunction, device: torch.device) -> list[float]:
    inputs = move_to_device(collate([row]), device)
    return [float(value) for value in logps_by_segment(inputs, *token_losses(inputs))[0]]
