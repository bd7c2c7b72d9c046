"""Configs of the stages that learn from rewards on their own answers; field names are those of `trl`."""

from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_TOKENS
from tuneline.config.training.base import TrainingConfig


class RLConfig(TrainingConfig):
    """What PPO and GRPO have in common: answers are drawn, rewarded, and learned from in a few updates."""

    learning_rate: float = Field(1e-5, gt=0, le=100)
    """Peak learning rate."""

    num_train_epochs: float = Field(1, gt=0, le=1e6)
    """Passes over the prompts."""

    per_device_train_batch_size: int = Field(8, ge=1, le=MAX_BATCH_SIZE)
    """Prompts a step. A step draws answers once and makes all its updates on them."""

    mini_batch_size: int | None = Field(None, ge=1, le=MAX_BATCH_SIZE)
    """Answers in one update; left out, all of the step's."""

    reward_function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """`module:function`, which takes `prompts`, `completions` and `references` (lists of texts) and returns a number
    each. Left out, the reward model of `load.adapters` judges (`use: reward`)."""

    reward_function_hash: str = ""
    """Hash of the function's source, filled in by the pipeline, so that a changed function is another training."""

    max_completion_length: int = Field(128, ge=1, le=MAX_TOKENS)
    """Longest answer, in tokens."""

    temperature: float = Field(1.0, gt=0, le=100)
    """Of the answers that are drawn."""

    missing_eos_penalty: float | None = Field(None, gt=0, le=1e6)
    """Taken off the reward of an answer that does not end by itself."""

    @model_validator(mode="after")
    def _a_step_is_not_accumulated(self) -> "RLConfig":
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps: a step makes its own updates. Leave it out, and set mini_batch_size for "
                "the answers in one forward pass."
            )
        return self


class PPOConfig(RLConfig):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155).

    One base model plays all roles: policy (its adapter), reference (no adapter), reward model (an adapter and a head),
    critic (a head on the policy), as in LlamaFactory's model-sharing RLHF (arXiv:2403.13372, section 3.3).
    """

    objective: Literal["ppo"] = "ppo"
    """What is minimised; it follows from the stage."""

    num_ppo_epochs: int = Field(4, ge=1, le=10_000)
    """Passes over a step's answers."""

    kl_coef: float = Field(0.05, ge=0, le=1e6)
    """Price of a nat of distance from the reference, taken off the reward token by token."""

    target_kl: float | None = Field(None, gt=0, le=1e6)
    """Adapt `kl_coef` so that answers are so many nats from the reference on average (Ziegler et al. 2019,
    arXiv:1909.08593). LlamaFactory calls this `ppo_target`."""

    cliprange: float = Field(0.2, gt=0, le=1e6)
    """How far the policy may move from the one that answered, as a ratio."""

    cliprange_value: float = Field(0.2, gt=0, le=1e6)
    """The same of the critic's values."""

    vf_coef: float = Field(0.1, ge=0, le=1e6)
    """Weight of the critic's loss."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount a token."""

    lam: float = Field(0.95, ge=0, le=1)
    """Of the generalised advantage estimate (Schulman et al. 2015, arXiv:1506.02438)."""

    whiten_rewards: bool = False
    """Give the step's rewards mean 0 and spread 1. LlamaFactory calls this `ppo_score_norm`."""


class GRPOConfig(RLConfig):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): answers to a prompt judge each other."""

    objective: Literal["grpo"] = "grpo"
    """What is minimised; it follows from the stage."""

    per_device_train_batch_size: int = Field(4, ge=1, le=MAX_BATCH_SIZE)
    """Prompts a step; each is answered `num_generations` times."""

    num_generations: int = Field(8, ge=2, le=10_000)
    """Answers a prompt, which are compared with each other."""

    num_iterations: int = Field(1, ge=1, le=10_000)
    """Passes over a step's answers."""

    beta: float = Field(0.0, ge=0, le=1e6)
    """Price of distance from the reference; 0 needs none."""

    epsilon: float = Field(0.2, gt=0, le=1e6)
    """How far the policy may move down from the one that answered, as a ratio."""

    epsilon_high: float | None = Field(None, gt=0, le=1e6)
    """The same upwards (DAPO, Yu et al. 2025, arXiv:2503.14476); left out, `epsilon`."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """By whose spread advantages are divided; `none` as Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How tokens are averaged: by answer; over an update; by the longest possible answer; over the step."""
