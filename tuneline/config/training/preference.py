"""Configs of the stages that learn from preferences; field names are those of `trl`."""

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
"""Losses that know of wrong labels."""


class PreferenceConfig(TrainingConfig):
    """What the stages of preferences have in common: a small step and one pass."""

    learning_rate: float = Field(5e-6, gt=0, le=100)
    """Peak learning rate; far below that of supervised fine-tuning."""

    num_train_epochs: float = Field(1, gt=0, le=1e6)
    """Passes over the training rows."""


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its kin, against a reference."""

    objective: Literal["dpo"] = "dpo"
    """What is minimised; it follows from the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """How dear it is to leave the reference; IPO calls it tau. LlamaFactory calls this `pref_beta`."""

    loss_type: DPOLoss | list[DPOLoss] = "sigmoid"
    """The loss, or several that are added; `sft` is the cross entropy of the chosen answers. LlamaFactory calls this
    `pref_loss`."""

    loss_weights: list[float] | None = None
    """A weight for each of several losses; 1 where it is left out."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round."""

    def weighted_losses(self) -> list[tuple[str, float]]:
        """Return losses and weights."""
        kinds = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        return list(zip(kinds, self.loss_weights or [1.0] * len(kinds), strict=True))

    @model_validator(mode="after")
    def _losses_have_weights_of_their_own(self) -> "DPOConfig":
        kinds = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        if not kinds:
            raise ValueError("loss_type: the list is empty. Name a loss, like sigmoid.")
        if self.loss_weights is not None and len(self.loss_weights) != len(kinds):
            raise ValueError(f"loss_weights: {len(self.loss_weights)} weights for {len(kinds)} losses. Give one each.")
        if kinds == ["sft"]:
            raise ValueError("loss_type: sft alone learns from no pair. Add another loss, or set stage: sft.")
        return self

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "DPOConfig":
        kinds = [kind for kind, _ in self.weighted_losses()]
        if self.label_smoothing and not any(kind in LABEL_SMOOTHING_LOSSES for kind in kinds):
            raise ValueError(
                f"label_smoothing: {' and '.join(kinds)} takes none. Leave it out, or set loss_type to one of "
                f"{', '.join(LABEL_SMOOTHING_LOSSES)}."
            )
        if not self.label_smoothing and "exo_pair" in kinds:
            raise ValueError("label_smoothing: exo_pair needs one above 0, like 0.001.")
        return self

    @model_validator(mode="after")
    def _ranks_need_a_batch(self) -> "DPOConfig":
        ranked = [kind for kind, _ in self.weighted_losses() if kind.startswith("aot")]
        if ranked and self.per_device_train_batch_size < 2:
            raise ValueError(
                f"loss_type: {ranked[0]} ranks the pairs of a batch, and per_device_train_batch_size is 1. Set it to "
                "2 or more."
            )
        return self


class ORPOConfig(PreferenceConfig):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), without a reference."""

    objective: Literal["orpo"] = "orpo"
    """What is minimised; it follows from the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Weight of the odds ratio beside the likelihood; the paper's lambda."""


class CPOConfig(PreferenceConfig):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417), without a reference."""

    objective: Literal["cpo"] = "cpo"
    """What is minimised; it follows from the stage."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """Scale of the margin between the answers' log-likelihoods."""

    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """The loss of the margin."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round; for `sigmoid`."""

    cpo_alpha: float = Field(1.0, ge=0, le=1e6)
    """Weight of the chosen answers' cross entropy."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "CPOConfig":
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing: {self.loss_type} takes none. Leave it out, or set loss_type: sigmoid.")
        return self


class SimPOConfig(PreferenceConfig):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734), without a reference."""

    objective: Literal["simpo"] = "simpo"
    """What is minimised; it follows from the stage."""

    beta: float = Field(2.0, gt=0, le=1e6)
    """Scale of the reward, a log-likelihood a token; the paper finds 2.0 to 2.5 best."""

    simpo_gamma: float = Field(1.0, ge=0, le=1e6)
    """Margin that the chosen reward shall keep; the paper's gamma."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round."""

    cpo_alpha: float = Field(0.0, ge=0, le=1e6)
    """Weight of the chosen answers' cross entropy; none in the paper."""


class KTOConfig(PreferenceConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): single answers with a label."""

    objective: Literal["kto"] = "kto"
    """What is minimised; it follows from the stage."""

    per_device_train_batch_size: int = Field(4, ge=1, le=MAX_BATCH_SIZE)
    """Answers in one forward pass; how far the policy has moved is estimated on them."""

    beta: float = Field(0.1, gt=0, le=1e6)
    """How dear it is to leave the reference."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """The loss; `apo_zero_unpaired` (arXiv:2408.06266) needs no estimate of how far the policy has moved."""

    desirable_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of wanted answers. LlamaFactory calls this `kto_chosen_weight`."""

    undesirable_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of unwanted answers. LlamaFactory calls this `kto_rejected_weight`."""

    @model_validator(mode="after")
    def _an_estimate_needs_a_batch(self) -> "KTOConfig":
        if self.loss_type == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size: kto estimates on a batch how far the policy has moved, and one answer is "
                "too few. Set it to 2 or more, or set loss_type: apo_zero_unpaired."
            )
        return self


class RewardConfig(PreferenceConfig):
    """Reward modelling (Ouyang et al. 2022, arXiv:2203.02155): a head that gives the chosen answer more."""

    objective: Literal["reward"] = "reward"
    """What is minimised; it follows from the stage."""

    learning_rate: float = Field(1e-4, gt=0, le=100)
    """Peak learning rate."""

    center_rewards_coefficient: float | None = Field(None, gt=0, le=1e6)
    """Weight of the squared sum of both rewards, which keeps them around zero (Eisenstein et al. 2023,
    arXiv:2312.09244), like 0.01."""
