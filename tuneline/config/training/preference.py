"""Training arguments of the preference stages. Field names follow `trl`."""

from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_BATCH_SIZE
from tuneline.config.training.base import TrainingConfig

DPOLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]

LABEL_SMOOTHING_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that support label smoothing."""


class PreferenceConfig(TrainingConfig):
    """Defaults of the preference stages: a small learning rate and one epoch."""

    learning_rate: float = Field(5e-6, gt=0, le=100)
    """Peak learning rate. Much lower than for supervised fine-tuning."""

    num_train_epochs: float = Field(1, gt=0, le=1e6)
    """Number of epochs over the training rows."""


class DPOConfig(PreferenceConfig):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) and related losses with a reference."""

    objective: Literal["dpo"] = "dpo"
    """Training objective. Determined by the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Strength of the penalty for deviating from the reference model; IPO calls it tau. LlamaFactory: `pref_beta`."""

    loss_type: DPOLoss | list[DPOLoss] = "sigmoid"
    """Loss function, or a list of losses to sum. `sft` is the cross entropy of the chosen answers. LlamaFactory:
    `pref_loss`."""

    loss_weights: list[float] | None = None
    """Weight of each loss in `loss_type`. Defaults to 1 each."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed probability that a pair's labels are swapped."""

    def weighted_losses(self) -> list[tuple[str, float]]:
        """Return the losses with their weights."""
        kinds = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        return list(zip(kinds, self.loss_weights or [1.0] * len(kinds), strict=True))

    @model_validator(mode="after")
    def _losses_and_weights_match(self) -> "DPOConfig":
        kinds = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        if not kinds:
            raise ValueError("loss_type: the list is empty. Set a loss, like sigmoid.")
        if self.loss_weights is not None and len(self.loss_weights) != len(kinds):
            raise ValueError(
                f"loss_weights: expected {len(kinds)} values, one per loss, got {len(self.loss_weights)}. Set one each."
            )
        if kinds == ["sft"]:
            raise ValueError(
                "loss_type: sft alone does not use the rejected answers. Add another loss, or set stage: sft."
            )
        return self

    @model_validator(mode="after")
    def _label_smoothing_is_supported(self) -> "DPOConfig":
        kinds = [kind for kind, _ in self.weighted_losses()]
        if self.label_smoothing and not any(kind in LABEL_SMOOTHING_LOSSES for kind in kinds):
            raise ValueError(
                f"label_smoothing: not supported by {' and '.join(kinds)}. Remove it, or set loss_type to one of: "
                f"{', '.join(LABEL_SMOOTHING_LOSSES)}."
            )
        if not self.label_smoothing and "exo_pair" in kinds:
            raise ValueError("label_smoothing: exo_pair requires a value above 0. Set one, like 0.001.")
        return self

    @model_validator(mode="after")
    def _ranking_losses_have_a_batch(self) -> "DPOConfig":
        ranked = [kind for kind, _ in self.weighted_losses() if kind.startswith("aot")]
        if ranked and self.per_device_train_batch_size < 2:
            raise ValueError(
                f"loss_type: {ranked[0]} ranks the pairs of a batch, but per_device_train_batch_size is 1. Set it to "
                "2 or more."
            )
        return self


class ORPOConfig(PreferenceConfig):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), without a reference model."""

    objective: Literal["orpo"] = "orpo"
    """Training objective. Determined by the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Weight of the odds ratio term relative to the likelihood; lambda in the paper."""


class CPOConfig(PreferenceConfig):
    """Contrastive preference optimization (Xu et al. 2024, arXiv:2401.08417), without a reference model."""

    objective: Literal["cpo"] = "cpo"
    """Training objective. Determined by the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Scale of the margin between the log-likelihoods of the two answers."""

    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """Loss function applied to the margin."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed probability that a pair's labels are swapped. Only for `loss_type: sigmoid`."""

    cpo_alpha: float = Field(1.0, ge=0, le=1e6)
    """Weight of the cross entropy of the chosen answers."""

    @model_validator(mode="after")
    def _label_smoothing_is_supported(self) -> "CPOConfig":
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing: not supported by {self.loss_type}. Remove it, or set loss_type: sigmoid."
            )
        return self


class SimPOConfig(PreferenceConfig):
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734), without a reference model."""

    objective: Literal["simpo"] = "simpo"
    """Training objective. Determined by the stage."""

    beta: float = Field(2.0, gt=0, le=1e6)
    """Scale of the reward, which is the log-likelihood per token. The paper recommends 2.0 to 2.5."""

    simpo_gamma: float = Field(1.0, ge=0, le=1e6)
    """Target margin between chosen and rejected reward; gamma in the paper."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed probability that a pair's labels are swapped."""

    cpo_alpha: float = Field(0.0, ge=0, le=1e6)
    """Weight of the cross entropy of the chosen answers; 0 in the paper."""


class KTOConfig(PreferenceConfig):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306) on completions with a binary label."""

    objective: Literal["kto"] = "kto"
    """Training objective. Determined by the stage."""

    per_device_train_batch_size: int = Field(4, ge=1, le=MAX_BATCH_SIZE)
    """Completions per forward pass. The KL divergence from the reference model is estimated on them."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Strength of the penalty for deviating from the reference model."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """Loss function. `apo_zero_unpaired` (arXiv:2408.06266) does not need the KL estimate."""

    desirable_weight: float = Field(1.0, ge=0, le=1e6)
    """Loss weight of desirable completions. LlamaFactory: `kto_chosen_weight`."""

    undesirable_weight: float = Field(1.0, ge=0, le=1e6)
    """Loss weight of undesirable completions. LlamaFactory: `kto_rejected_weight`."""

    @model_validator(mode="after")
    def _kl_estimate_has_a_batch(self) -> "KTOConfig":
        if self.loss_type == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size: loss kto estimates the KL divergence on a batch, which requires at least "
                "2 completions. Set it to 2 or more, or set loss_type: apo_zero_unpaired."
            )
        return self


class RewardConfig(PreferenceConfig):
    """Reward modeling (Ouyang et al. 2022, arXiv:2203.02155): a value head that scores the chosen answer higher."""

    objective: Literal["reward"] = "reward"
    """Training objective. Determined by the stage."""

    learning_rate: float = Field(1e-4, gt=0, le=100)
    """Peak learning rate."""

    center_rewards_coefficient: float | None = Field(None, gt=0, le=1e6)
    """Weight of the squared sum of both rewards, which centers rewards at zero (Eisenstein et al. 2023,
    arXiv:2312.09244), like 0.01."""
