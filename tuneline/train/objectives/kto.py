"""Single answers with a label: KTO (Ethayarajh et al. 2024, arXiv:2402.01306), and APO without pairs.

KTO compares the reward of an answer with the KL divergence between policy and reference. The divergence is estimated on
mismatched pairs: each prompt with the answer of the row before it in the data. Their reference log-probabilities are
computed once, with those of the answers.
"""

from typing import Any

import torch
from datasets import Dataset

from tuneline.data.tokenization import preference_rows
from tuneline.train.collate import collate, move_to_device
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

REFERENCE_LOGP, MISMATCHED_REFERENCE_LOGP, MISMATCHED_IDS = "ref_completion", "ref_mismatched", "mismatched_ids"


@objectives.register("kto")
class KTO(Objective):
    """The loss of answers with a label, desirable or not."""

    name = "kto"

    @property
    def uses_kl(self) -> bool:
        """Whether the loss depends on the KL divergence between policy and reference."""
        return bool(self.config.loss_type == "kto")

    @property
    def needs_reference_columns(self) -> bool:
        """The reference log-probabilities."""
        return True

    def compute_reference_columns(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Score all answers with the initial model, and pair each prompt with the answer of the row before it."""
        return {split: self._reference_columns(members, token_losses, device) for split, members in rows.items()}

    def _reference_columns(
        self, rows: Dataset, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {REFERENCE_LOGP: [], MISMATCHED_REFERENCE_LOGP: [], MISMATCHED_IDS: []}
        previous = rows[len(rows) - 1]["completion_ids"] if len(rows) else []
        for row in rows:
            spans = [(row["prompt_ids"], row["completion_ids"]), (row["prompt_ids"], previous)]
            packed = collate([preference_rows.concatenate_segments(spans[: 2 if self.uses_kl else 1])])
            inputs = move_to_device(packed, device)
            logps = logps_by_segment(inputs, *token_losses(inputs))[0].tolist()
            columns[REFERENCE_LOGP].append(logps[0])
            columns[MISMATCHED_REFERENCE_LOGP].append(logps[-1])
            columns[MISMATCHED_IDS].append(previous if self.uses_kl else [])
            previous = row["completion_ids"]
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Concatenate the answers, and separately the prompts with mismatched answers."""
        inputs = super().collate(rows)
        inputs["label"] = torch.tensor([row["label"] for row in rows])
        logp_columns = (REFERENCE_LOGP, MISMATCHED_REFERENCE_LOGP)
        inputs |= {name: torch.tensor([row[name] for row in rows]) for name in logp_columns}
        if self.uses_kl:
            inputs["mismatched"] = collate(
                [preference_rows.concatenate_segments([(row["prompt_ids"], row[MISMATCHED_IDS]) for row in rows])]
            )
        return inputs

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of answers."""
        return count_segments(inputs)

    def compute_loss(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Return the loss, summed over answers."""
        config, label = self.config, inputs["label"]
        kl = self._estimate_kl(inputs, token_losses)
        extra = ("label", REFERENCE_LOGP, MISMATCHED_REFERENCE_LOGP, "mismatched")
        model_inputs = {name: value for name, value in inputs.items() if name not in extra}
        logps, _ = logps_by_segment(model_inputs, *token_losses(model_inputs))
        ratio = logps - inputs[REFERENCE_LOGP].to(logps)
        signed = torch.where(label, ratio - kl, kl - ratio)
        weight = torch.where(label, config.desirable_weight, config.undesirable_weight)
        losses = weight * torch.sigmoid(-config.beta * signed)
        return LossOutput(losses.sum(), len(label), self._metrics(ratio.detach(), label, kl))

    @torch.no_grad()
    def _estimate_kl(self, inputs: Inputs, token_losses: TokenLossFunction) -> torch.Tensor:
        """Estimate the KL divergence between policy and reference (nats per answer), clamped at zero."""
        if not self.uses_kl:
            return torch.zeros((), device=inputs["label"].device)
        mismatched = inputs["mismatched"]
        logps, _ = logps_by_segment(mismatched, *token_losses(mismatched))
        return (logps - inputs[MISMATCHED_REFERENCE_LOGP].to(logps)).mean().clamp(min=0)

    def _metrics(self, ratio: torch.Tensor, label: torch.Tensor, kl: torch.Tensor) -> dict[str, tuple[float, float]]:
        reward = self.config.beta * ratio
        correct = torch.where(label, ratio > kl, ratio < kl)
        metrics: dict[str, tuple[float, float]] = {}
        if self.uses_kl:
            metrics["kl"] = (float(kl) * len(label), len(label))
        metrics["rewards/accuracies"] = (float(correct.sum()), len(label))
        for name, members in (("chosen", label), ("rejected", ~label)):
            if members.any():
                metrics[f"rewards/{name}"] = (float(reward[members].sum()), int(members.sum()))
        return metrics
