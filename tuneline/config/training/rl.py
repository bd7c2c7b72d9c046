"""Training arguments of the reinforcement learning stages PPO and GRPO. Field names follow `trl`."""

from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_TOKENS
from tuneline.config.training.base import TrainingConfig


class RLConfig(TrainingConfig):
    """Arguments shared by PPO and GRPO.

    Each step samples completions, scores them and updates the policy several times.
    """

    learning_rate: float = Field(1e-5, gt=0, le=100)
    """Peak learning rate."""

    num_train_epochs: float = Field(1, gt=0, le=1e6)
    """Number of epochs over the prompts."""

    per_device_train_batch_size: int = Field(8, ge=1, le=MAX_BATCH_SIZE)
    """Prompts per step. Each step samples completions once and makes all its updates on them."""

    mini_batch_size: int | None = Field(None, ge=1, le=MAX_BATCH_SIZE)
    """Completions per policy update. If omitted, all completions of the step."""

    reward_function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """`module:function` that takes `prompts`, `completions` and `references` (lists of strings) and returns one number
    per completion. If omitted, the reward model in `load.adapters` (`use: reward`) scores completions."""

    reward_function_hash: str = ""
    """Hash of the reward function's source. Set by the pipeline, so that a modified function invalidates the cache."""

    max_completion_length: int = Field(128, ge=1, le=MAX_TOKENS)
    """Maximum number of tokens per completion."""

    temperature: float = Field(1.0, gt=0, le=100)
    """Sampling temperature of the completions."""

    missing_eos_penalty: float | None = Field(None, gt=0, le=1e6)
    """Penalty subtracted from the reward of a completion without an end-of-sequence token."""

    @model_validator(mode="after")
    def _gradients_are_not_accumulated(self) -> "RLConfig":
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps: not supported, because each step makes several updates. Remove it, and "
                "set mini_batch_size to the number of completions per forward pass."
            )
        return self


class PPOConfig(RLConfig):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155).

    One base model serves as policy (its adapter), reference (adapter disabled), reward model (a second adapter and a
    head) and critic (a head on the policy), as in LlamaFactory's model-sharing RLHF (arXiv:2403.13372, section 3.3).
    """

    objective: Literal["ppo"] = "ppo"
    """Training objective. Determined by the stage."""

    num_ppo_epochs: int = Field(4, ge=1, le=10_000)
    """Number of epochs over the completions of a step."""

    kl_coef: float = Field(0.05, ge=0, le=1e6)
    """Coefficient of the KL penalty against the reference model, subtracted from the reward per token."""

    target_kl: float | None = Field(None, gt=0, le=1e6)
    """Target KL divergence in nats per completion; `kl_coef` is adapted to reach it (Ziegler et al. 2019,
    arXiv:1909.08593). LlamaFactory: `ppo_target`."""

    cliprange: float = Field(0.2, gt=0, le=1e6)
    """Clip range of the probability ratio between the updated policy and the policy that sampled."""

    cliprange_value: float = Field(0.2, gt=0, le=1e6)
    """Clip range of the value function."""

    vf_coef: float = Field(0.1, ge=0, le=1e6)
    """Weight of the value loss."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount factor per token."""

    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438)."""

    whiten_rewards: bool = False
    """Normalize the rewards of a step to mean 0 and standard deviation 1. LlamaFactory: `ppo_score_norm`."""


class GRPOConfig(RLConfig):
    """Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300).

    The completions of one prompt are compared with each other, so no critic is needed.
    """

    objective: Literal["grpo"] = "grpo"
    """Training objective. Determined by the stage."""

    per_device_train_batch_size: int = Field(4, ge=1, le=MAX_BATCH_SIZE)
    """Prompts per step. `num_generations` completions are sampled for each."""

    num_generations: int = Field(8, ge=2, le=10_000)
    """Completions per prompt, whose rewards are compared with each other."""

    num_iterations: int = Field(1, ge=1, le=10_000)
    """Number of epochs over the completions of a step."""

    beta: float = Field(0.0, ge=0, le=1e6)
    """Coefficient of the KL penalty against the reference model. 0 needs no reference model."""

    epsilon: float = Field(0.2, gt=0, le=1e6)
    """Lower clip range of the probability ratio between the updated policy and the policy that sampled."""

    epsilon_high: float | None = Field(None, gt=0, le=1e6)
    """Upper clip range (DAPO, Yu et al. 2025, arXiv:2503.14476). Defaults to `epsilon`."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Standard deviation by which advantages are divided: of the group or of the batch. `none` does not scale, as in
    Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged: per completion (`grpo`), over an update (`bnpo`), by the maximum completion length
    (`dr_grpo`) or over the step (`dapo`)."""
