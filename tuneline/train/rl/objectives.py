"""What PPO and GRPO make of answers and rewards: advantages, and the loss of an update."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tuneline.model import value_head
from tuneline.model.positions import prediction_positions
from tuneline.train.objectives.base import Inputs, LossOutput, Objective, TokenLossFunction, objectives
from tuneline.train.rl.experience import Experience, compute_gae, whiten
from tuneline.train.rl.roles import detach_reward_model

VALUE_HEAD = "value_head"


class RLObjective(Objective):
    """What both have in common: rows are prompts, and a step knows how to cut its answers into updates."""

    @property
    def needs_reference(self) -> bool:
        """The distance from the reference has a price."""
        raise NotImplementedError

    @property
    def num_passes(self) -> int:
        """Passes over a step's answers."""
        raise NotImplementedError

    def collate(self, rows: list[dict[str, Any]]) -> Inputs:
        """Keep prompts and reference answers as they are."""
        return {"asked": [(row["prompt_ids"], row["completion_ids"]) for row in rows]}

    def num_items(self, inputs: Inputs) -> int:
        """Count prompts."""
        return len(inputs["asked"])

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Leave the policy's adapter alone on the base."""
        detach_reward_model(model)
        return {}

    def asked(self, inputs: Inputs) -> list[tuple[list[int], list[int]]]:
        """Return prompts, each as often as it is answered, with reference answers."""
        return [(list(prompt), list(reference)) for prompt, reference in inputs["asked"]]

    def minibatches(self, count: int) -> list[list[int]]:
        """Return the answers of each update, in an order drawn anew for each pass."""
        size = self.config.mini_batch_size or count
        order = [torch.randperm(count).tolist() for _ in range(self.num_passes)]
        return [sorted(each[i : i + size]) for each in order for i in range(0, count, size)]

    def said(
        self, model: Any, inputs: Inputs, token_losses: TokenLossFunction, *, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return log-probabilities [N] of the answers' tokens, and the critic's values before them, if there is one."""
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
            everywhere, found = value_head.compute_values_and_logits(model, head, **rest)
            logits, values = found[0], everywhere[0, keep]
        logits = logits if len(logits) == len(keep) else logits[keep]
        scaled = logits.float() / self.config.temperature
        return -cross_entropy(scaled, labels[keep + 1].long(), reduction="none"), values

    def judge(self, made: Experience) -> None:
        """Fill in what the rewards mean for each token."""
        raise NotImplementedError

    def update(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the loss of an update on some of a step's answers."""
        raise NotImplementedError


@objectives.register("ppo")
class PPO(RLObjective):
    """Clipped policy and value losses, with the reference's distance in the reward (arXiv:1707.06347, 2203.02155)."""

    name = "ppo"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.kl_coef = float(config.kl_coef) if config is not None else 0.0

    needs_reference = True

    @property
    def num_passes(self) -> int:
        """As the recipe says."""
        return int(self.config.num_ppo_epochs)

    def attach(self, model: Any, seed: int) -> None:
        """Put the critic's head on the policy; it starts at zero, so that at first it expects nothing."""
        model.add_module(VALUE_HEAD, value_head.build_value_head(model))

    def detach(self, model: Any) -> dict[str, torch.Tensor]:
        """Take the head away; an answering model needs no critic."""
        delattr(model, VALUE_HEAD)
        return super().detach(model)

    def state(self) -> dict[str, float]:
        """The price of distance, where it is adapted."""
        return {"kl_coef": self.kl_coef}

    def restore(self, state: dict[str, float]) -> None:
        """Go on at the price of a checkpoint."""
        self.kl_coef = state["kl_coef"]

    def said(
        self, model: Any, inputs: Inputs, token_losses: TokenLossFunction, *, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities and values of one pass."""
        return self._logps(model, inputs, getattr(model, VALUE_HEAD) if values else None)

    def judge(self, made: Experience) -> None:
        """Spread rewards over tokens, less the price of distance, and compare with what the critic expected."""
        assert made.ref_logps_N is not None, "computed with the answers"
        assert made.values_N is not None, "computed with the answers"
        config, lengths = self.config, made.lengths
        score = whiten(made.rewards) if config.whiten_rewards else made.rewards
        distance_N = made.old_logps_N - made.ref_logps_N
        earned_N = -self.kl_coef * distance_N
        last = torch.tensor(lengths).cumsum(0) - 1
        earned_N[last.to(earned_N.device)] += score.to(earned_N)
        estimates_N = compute_gae(earned_N, made.values_N, lengths, config.gamma, config.lam)
        made.returns_N = estimates_N + made.values_N
        made.advantages_N = whiten(estimates_N)
        if config.target_kl:
            error = float(distance_N.sum()) / len(lengths) / config.target_kl - 1
            self.kl_coef *= 1 + 0.1 * max(-0.2, min(0.2, error))

    def update(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the clipped losses of policy and critic, each a mean over tokens."""
        assert part.values_N is not None, "computed with the answers"
        assert part.returns_N is not None, "judged before"
        config = self.config
        logps_N, values_N = self._logps(model, inputs, getattr(model, VALUE_HEAD))
        assert values_N is not None, "the head was given"
        ratio_N = (logps_N - part.old_logps_N).exp()
        clipped_N = ratio_N.clamp(1 - config.cliprange, 1 + config.cliprange)
        policy = torch.max(-part.advantages_N * ratio_N, -part.advantages_N * clipped_N).mean()
        near_N = part.values_N + (values_N - part.values_N).clamp(-config.cliprange_value, config.cliprange_value)
        value = 0.5 * torch.max((values_N - part.returns_N) ** 2, (near_N - part.returns_N) ** 2).mean()
        figures = {
            "policy_loss": (float(policy.detach()), 1.0),
            "value_loss": (float(value.detach()), 1.0),
            "clip_ratio": (float(((ratio_N - 1).abs() > config.cliprange).float().mean()), 1.0),
            "kl_coef": (self.kl_coef, 1.0),
        }
        return LossOutput(policy + config.vf_coef * value, len(part.spans), figures)


@objectives.register("grpo")
class GRPO(RLObjective):
    """Answers to one prompt are judged against each other (Shao et al. 2024, arXiv:2402.03300)."""

    name = "grpo"

    @property
    def needs_reference(self) -> bool:
        """Only where the recipe prices the distance."""
        return bool(self.config.beta > 0)

    @property
    def num_passes(self) -> int:
        """As the recipe says."""
        return int(self.config.num_iterations)

    def asked(self, inputs: Inputs) -> list[tuple[list[int], list[int]]]:
        """Ask each prompt several times."""
        return [each for each in super().asked(inputs) for _ in range(self.config.num_generations)]

    def judge(self, made: Experience) -> None:
        """Compare each reward with its group's mean, by the spread that the recipe names."""
        groups = made.rewards.view(-1, self.config.num_generations)
        above = groups - groups.mean(1, keepdim=True)
        if self.config.scale_rewards == "group":
            above = above / (groups.std(1, keepdim=True) + 1e-4)
        elif self.config.scale_rewards == "batch":
            above = above / (made.rewards.std() + 1e-4)
        lengths = torch.tensor(made.lengths)
        made.advantages_N = above.flatten().repeat_interleave(lengths).to(made.old_logps_N)

    def update(
        self, model: Any, inputs: Inputs, part: Experience, whole: Experience, token_losses: TokenLossFunction
    ) -> LossOutput:
        """Return the clipped loss, averaged over tokens as `loss_type` says."""
        config = self.config
        logps_N, _ = self.said(model, inputs, token_losses)
        ratio_N = (logps_N - part.old_logps_N).exp()
        high = config.epsilon_high or config.epsilon
        clipped_N = ratio_N.clamp(1 - config.epsilon, 1 + high)
        losses_N = -torch.min(part.advantages_N * ratio_N, part.advantages_N * clipped_N)
        if part.ref_logps_N is not None:
            apart_N = part.ref_logps_N - logps_N
            losses_N = losses_N + config.beta * (apart_N.exp() - apart_N - 1)
        figures = {"clip_ratio": (float((ratio_N != clipped_N).float().mean()), 1.0)}
        return LossOutput(self._averaged(losses_N, part, whole), len(part.spans), figures)

    def _averaged(self, losses_N: torch.Tensor, part: Experience, whole: Experience) -> torch.Tensor:
        if self.config.loss_type == "grpo":
            return torch.stack([losses.mean() for losses in losses_N.split(part.lengths)]).mean()
        if self.config.loss_type == "bnpo":
            return losses_N.mean()
        if self.config.loss_type == "dr_grpo":
            return losses_N.sum() / (len(part.spans) * self.config.max_completion_length)
        share = len(part.spans) / len(whole.spans)
        return losses_N.sum() / (sum(whole.lengths) * share)
