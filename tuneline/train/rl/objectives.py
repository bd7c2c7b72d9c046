"""The objectives PPO and GRPO: advantages from rewards, and the loss of an update."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tuneline.model import value_head
from tuneline.model.positions import prediction_positions
from tuneline.train.objectives.base import Inputs, LossOutput, Objective, TokenLossFunction, objectives
from tuneline.train.rl.experience import Experience, compute_gae, whiten
from tuneline.train.rl.roles import detach_reward_model


class RLObjective(Objective):
    """Base class of PPO and GRPO: rows are prompts, and the completions of a step are split into updates."""

    @property
    def needs_reference(self) -> bool:
        """Whether the KL divergence to the reference is penalized."""
        raise NotImplementedError

    @property
    def num_passes(self) -> int:
        """Number of passes over the completions of a step."""
        raise NotImplementedError

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Return the prompts and reference answers as they are."""
        return {"prompts": [(row["prompt_ids"], row["completion_ids"]) for row in rows]}

    def num_items(self, inputs: Inputs) -> int:
        """Return the number of prompts."""
        return len(inputs["prompts"])

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Remove the reward adapter; the adapter of the policy remains."""
        detach_reward_model(model)
        return {}

    def expand_prompts(self, inputs: Inputs) -> list[tuple[list[int], list[int]]]:
        """Return the prompts with reference answers, each repeated once per completion."""
        return [(list(prompt), list(reference)) for prompt, reference in inputs["prompts"]]

    def minibatches(self, count: int) -> list[list[int]]:
        """Return the completions of each update, in a new random order for each pass."""
        size = self.config.mini_batch_size or count
        orders = [torch.randperm(count).tolist() for _ in range(self.num_passes)]
        return [sorted(order[i : i + size]) for order in orders for i in range(0, count, size)]

    def compute_logps(
        self, model: Any, inputs: Inputs, token_losses: TokenLossFunction, *, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the log-probabilities [N] of the completion tokens, and the critic's values before them or None."""
        if self.config.temperature == 1:
            return -token_losses(inputs)[0], None
        return self._logps(model, inputs)[0], None

    def _logps(self, model: Any, inputs: Inputs, head: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        labels = inputs["labels"][0]
        keep = prediction_positions(inputs)
        rest = {name: value for name, value in inputs.items() if name != "labels"} | {"logits_to_keep": keep}
        values = None
        if head is None:
            logits = model(**rest).logits[0]
        else:
            all_values, all_logits = value_head.compute_values_and_logits(model, head, **rest)
            logits, values = all_logits[0], all_values[0, keep]
        logits = logits if len(logits) == len(keep) else logits[keep]
        scaled = logits.float() / self.config.temperature
        return -cross_entropy(scaled, labels[keep + 1].long(), reduction="none"), values

    def compute_advantages(self, experience: Experience) -> None:
        """Set the advantages of an experience from its rewards."""
        raise NotImplementedError

    def update_loss(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the loss of an update on a part of the completions of a step."""
        raise NotImplementedError


@objectives.register("ppo")
class PPO(RLObjective):
    """Clipped policy and value losses, with a KL penalty in the reward (arXiv:1707.06347, 2203.02155)."""

    name = "ppo"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.kl_coef = float(config.kl_coef) if config is not None else 0.0

    needs_reference = True

    @property
    def num_passes(self) -> int:
        """`train.num_ppo_epochs`."""
        return int(self.config.num_ppo_epochs)

    def attach(self, model: Any, seed: int) -> None:
        """Add the head of the critic to the policy, initialized with zeros."""
        model.add_module(value_head.MODULE_NAME, value_head.build_value_head(model))

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Remove the head of the critic; the trained model does not need it."""
        delattr(model, value_head.MODULE_NAME)
        return super().detach(model)

    def state(self) -> dict[str, float]:
        """Return the KL coefficient, which may be adaptive."""
        return {"kl_coef": self.kl_coef}

    def restore(self, state: dict[str, float]) -> None:
        """Restore the KL coefficient of a checkpoint."""
        self.kl_coef = state["kl_coef"]

    def compute_logps(
        self, model: Any, inputs: Inputs, token_losses: TokenLossFunction, *, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return log-probabilities and values of one forward pass."""
        return self._logps(model, inputs, getattr(model, value_head.MODULE_NAME) if values else None)

    def compute_advantages(self, experience: Experience) -> None:
        """Set advantages and returns: rewards at the last token, less the KL penalty, compared with the values."""
        assert experience.ref_logps_N is not None, "computed with the completions"
        assert experience.values_N is not None, "computed with the completions"
        config, lengths = self.config, experience.lengths
        score = whiten(experience.rewards) if config.whiten_rewards else experience.rewards
        kl_N = experience.old_logps_N - experience.ref_logps_N
        rewards_N = -self.kl_coef * kl_N
        last = torch.tensor(lengths).cumsum(0) - 1
        rewards_N[last.to(rewards_N.device)] += score.to(rewards_N)
        estimates_N = compute_gae(rewards_N, experience.values_N, lengths, config.gamma, config.lam)
        experience.returns_N = estimates_N + experience.values_N
        experience.advantages_N = whiten(estimates_N)
        if config.target_kl:
            error = float(kl_N.sum()) / len(lengths) / config.target_kl - 1
            self.kl_coef *= 1 + 0.1 * max(-0.2, min(0.2, error))

    def update_loss(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the clipped losses of policy and critic, each a mean over tokens."""
        assert part.values_N is not None, "computed with the completions"
        assert part.returns_N is not None, "set by compute_advantages"
        config = self.config
        logps_N, values_N = self._logps(model, inputs, getattr(model, value_head.MODULE_NAME))
        assert values_N is not None, "the head is given"
        ratio_N = (logps_N - part.old_logps_N).exp()
        clipped_N = ratio_N.clamp(1 - config.cliprange, 1 + config.cliprange)
        policy_loss = torch.max(-part.advantages_N * ratio_N, -part.advantages_N * clipped_N).mean()
        change_N = (values_N - part.values_N).clamp(-config.cliprange_value, config.cliprange_value)
        clipped_values_N = part.values_N + change_N
        errors_N = torch.max((values_N - part.returns_N) ** 2, (clipped_values_N - part.returns_N) ** 2)
        value_loss = 0.5 * errors_N.mean()
        metrics = {
            "policy_loss": (float(policy_loss.detach()), 1.0),
            "value_loss": (float(value_loss.detach()), 1.0),
            "clip_ratio": (float(((ratio_N - 1).abs() > config.cliprange).float().mean()), 1.0),
            "kl_coef": (self.kl_coef, 1.0),
        }
        return LossOutput(policy_loss + config.vf_coef * value_loss, len(part.spans), metrics)


@objectives.register("grpo")
class GRPO(RLObjective):
    """Advantages relative to the other completions of the same prompt (Shao et al. 2024, arXiv:2402.03300)."""

    name = "grpo"

    @property
    def needs_reference(self) -> bool:
        """Whether `train.beta` is above 0."""
        return bool(self.config.beta > 0)

    @property
    def num_passes(self) -> int:
        """`train.num_iterations`."""
        return int(self.config.num_iterations)

    def expand_prompts(self, inputs: Inputs) -> list[tuple[list[int], list[int]]]:
        """Return each prompt `num_generations` times."""
        return [prompt for prompt in super().expand_prompts(inputs) for _ in range(self.config.num_generations)]

    def compute_advantages(self, experience: Experience) -> None:
        """Set advantages: rewards less the mean of their group, divided by a standard deviation (`scale_rewards`)."""
        groups = experience.rewards.view(-1, self.config.num_generations)
        centered = groups - groups.mean(1, keepdim=True)
        if self.config.scale_rewards == "group":
            centered = centered / (groups.std(1, keepdim=True) + 1e-4)
        elif self.config.scale_rewards == "batch":
            centered = centered / (experience.rewards.std() + 1e-4)
        lengths = torch.tensor(experience.lengths)
        experience.advantages_N = centered.flatten().repeat_interleave(lengths).to(experience.old_logps_N)

    def update_loss(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the clipped loss, averaged over tokens according to `loss_type`."""
        config = self.config
        logps_N, _ = self.compute_logps(model, inputs, token_losses)
        ratio_N = (logps_N - part.old_logps_N).exp()
        high = config.epsilon_high or config.epsilon
        clipped_N = ratio_N.clamp(1 - config.epsilon, 1 + high)
        losses_N = -torch.min(part.advantages_N * ratio_N, part.advantages_N * clipped_N)
        if part.ref_logps_N is not None:
            difference_N = part.ref_logps_N - logps_N
            losses_N = losses_N + config.beta * (difference_N.exp() - difference_N - 1)
        metrics = {"clip_ratio": (float((ratio_N != clipped_N).float().mean()), 1.0)}
        return LossOutput(self._average(losses_N, part, whole), len(part.spans), metrics)

    def _average(self, losses_N: torch.Tensor, part: Experience, whole: Experience) -> torch.Tensor:
        if self.config.loss_type == "grpo":
            return torch.stack([losses.mean() for losses in losses_N.split(part.lengths)]).mean()
        if self.config.loss_type == "bnpo":
            return losses_N.mean()
        if self.config.loss_type == "dr_grpo":
            return losses_N.sum() / (len(part.spans) * self.config.max_completion_length)
        share = len(part.spans) / len(whole.spans)
        return losses_N.sum() / (sum(whole.lengths) * share)
