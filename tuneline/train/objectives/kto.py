"""Single answers with a label: KTO (Ethayarajh et al. 2024, arXiv:2402.01306), and APO without pairs.

KTO compares an answer's reward with how far the policy has moved on the whole. That is measured on prompts with
answers of other rows, those before them in the order of the data, whose scores by the reference are computed once, as
the answers' own are.
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
    """Answers that are wanted or not."""

    name = "kto"

    @property
    def uses_kl(self) -> bool:
        """The loss knows how far the policy has moved."""
        return bool(self.config.loss_type == "kto")

    @property
    def needs_reference_columns(self) -> bool:
        """The reference's scores."""
        return True

    def prepare(
        self, rows: DatasetSplits, token_losses: TokenLossFunction, device: torch.device
    ) -> dict[str, dict[str, list[Any]]]:
        """Score all answers by the model as it starts, and give each prompt the answer of the row before it."""
        return {split: self._prepared(members, token_losses, device) for split, members in rows.items()}

    def _prepared(self, rows: Dataset, token_losses: TokenLossFunction, device: torch.device) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {REFERENCE_LOGP: [], MISMATCHED_REFERENCE_LOGP: [], MISMATCHED_IDS: []}
        before = rows[len(rows) - 1]["completion_ids"] if len(rows) else []
        for row in rows:
            spans = [(row["prompt_ids"], row["completion_ids"]), (row["prompt_ids"], before)]
            inputs = move_to_device(
                collate([preference_rows.concatenate_segments(spans[: 2 if self.uses_kl else 1])]), device
            )
            scores = logps_by_segment(inputs, *token_losses(inputs))[0].tolist()
            made[REFERENCE_LOGP].append(scores[0])
            made[MISMATCHED_REFERENCE_LOGP].append(scores[-1])
            made[MISMATCHED_IDS].append(before if self.uses_kl else [])
            before = row["completion_ids"]
        return made

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Lay answers end to end, and beside them the prompts with others' answers."""
        inputs = super().collate(rows)
        inputs["label"] = torch.tensor([row["label"] for row in rows])
        inputs |= {
            name: torch.tensor([row[name] for row in rows]) for name in (REFERENCE_LOGP, MISMATCHED_REFERENCE_LOGP)
        }
        if self.uses_kl:
            inputs["mismatched"] = collate(
                [preference_rows.concatenate_segments([(row["prompt_ids"], row[MISMATCHED_IDS]) for row in rows])]
            )
        return inputs

    def num_items(self, inputs: Inputs) -> int:
        """Count answers."""
        return count_segments(inputs)

    def measure(self, model: Any, inputs: Inputs, token_losses: TokenLossFunction) -> LossOutput:
        """Sum the loss over answers."""
        config, label = self.config, inputs["label"]
        moved = self._moved(inputs, token_losses)
        inner = {
            name: value
            for name, value in inputs.items()
            if name not in ("label", REFERENCE_LOGP, MISMATCHED_REFERENCE_LOGP, "mismatched")
        }
        logps, _ = logps_by_segment(inner, *token_losses(inner))
        ratio = logps - inputs[REFERENCE_LOGP].to(logps)
        signed = torch.where(label, ratio - moved, moved - ratio)
        weight = torch.where(label, config.desirable_weight, config.undesirable_weight)
        losses = weight * torch.sigmoid(-config.beta * signed)
        return LossOutput(losses.sum(), len(label), self._figures(ratio.detach(), label, moved))

    @torch.no_grad()
    def _moved(self, inputs: Inputs, token_losses: TokenLossFunction) -> torch.Tensor:
        """Estimate the KL divergence of policy and reference (nats an answer); never below zero."""
        if not self.uses_kl:
            return torch.zeros((), device=inputs["label"].device)
        strange = inputs["mismatched"]
        logps, _ = logps_by_segment(strange, *token_losses(strange))
        return (logps - inputs[MISMATCHED_REFERENCE_LOGP].to(logps)).mean().clamp(min=0)

    def _figures(self, ratio: torch.Tensor, label: torch.Tensor, moved: torch.Tensor) -> dict[str, tuple[float, float]]:
        reward = self.config.beta * ratio
        right = torch.where(label, ratio > moved, ratio < moved)
        found: dict[str, tuple[float, float]] = {}
        if self.uses_kl:
            found["kl"] = (float(moved) * len(label), len(label))
        found["rewards/accuracies"] = (float(right.sum()), len(label))
        for name, members in (("chosen", label), ("rejected", ~label)):
            if members.any():
                found[f"rewards/{name}"] = (float(reward[members].sum()), int(members.sum()))
        return found
