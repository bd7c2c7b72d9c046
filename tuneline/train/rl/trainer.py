"""Trainer for reinforcement learning: each step generates completions, scores them and makes several updates.

One step of transformers' Trainer contains all of this, so schedules, checkpoints, signals and metrics work as in every
other stage: the last update of a step is the one that the Trainer makes.
"""

from typing import Any

import torch

from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.train import rollout
from tuneline.train.collate import collate, move_to_device
from tuneline.train.job import TrainingJob
from tuneline.train.rl.experience import Experience
from tuneline.train.rl.objectives import RLObjective
from tuneline.train.rl.reward_functions import build_reward_function
from tuneline.train.rl.roles import PromptCompletion, RewardFunction, as_reference
from tuneline.train.rollout import GenerationOptions, generation_options
from tuneline.train.trainer import StageTrainer


def configure_rollouts(loop: "RLTrainer", job: TrainingJob) -> None:
    """Set the generation options and the reward function of a trainer."""
    tokenizer = load_tokenizer(job.tokenizer)
    config = loop.objective.config
    loop.generation = generation_options(tokenizer, config.max_completion_length, config.temperature)
    loop.reward_function = build_reward_function(job, loop.model, tokenizer)


class RLTrainer(StageTrainer):
    """Trains on the rewards of its own completions."""

    objective: RLObjective
    generation: GenerationOptions
    reward_function: RewardFunction

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Generate, score, and make all updates except the last, which the Trainer makes."""
        experience = self._collect(self.objective.expand_prompts(inputs))
        model.train()
        minibatches = self.objective.minibatches(len(experience.spans))
        losses = []
        for number, members in enumerate(minibatches):
            with self.compute_loss_context_manager():
                loss = self._update_loss(model, experience.select(members), experience)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
            if number + 1 < len(minibatches):
                if self.args.max_grad_norm:  # 0 means no limit; clipping to it would zero the gradients
                    self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return torch.stack(losses).mean()

    def _update_loss(self, model: Any, part: Experience, whole: Experience) -> torch.Tensor:
        inputs = self._inputs(part.spans)
        self.tokens_seen += inputs["input_ids"].numel()
        self.tokens_trained += sum(part.lengths)
        output = self.objective.update_loss(model, inputs, part, whole, self.token_losses)
        self.accumulate_metrics(output.metrics)
        return output.total

    def _inputs(self, spans: list[PromptCompletion]) -> dict[str, Any]:
        return move_to_device(collate([preference_rows.concatenate_segments(spans)]), self.model.device)

    @torch.no_grad()
    def _collect(self, prompts: list[tuple[list[int], list[int]]]) -> Experience:
        """Generate completions to prompts (with reference answers), and score them with all models."""
        self.model.eval()
        with self.autocast():
            prompt_ids = [prompt for prompt, _ in prompts]
            completions = rollout.generate_completions(self.model, prompt_ids, self.generation)
            spans = list(zip(prompt_ids, completions, strict=True))
            rewards = torch.tensor(self.reward_function(spans, [reference for _, reference in prompts]))
            inputs = self._inputs(spans)
            old_logps_N, values_N = self.objective.compute_logps(self.model, inputs, self.token_losses)
            ref_logps_N = None
            if self.objective.needs_reference:
                with as_reference(self.family, self.model):
                    ref_logps_N = self.objective.compute_logps(self.model, inputs, self.token_losses, values=False)[0]
        experience = Experience(
            spans, self._with_eos_penalty(spans, rewards), old_logps_N, ref_logps_N, values_N=values_N
        )
        self.accumulate_metrics(self._metrics(experience, rewards))
        self.objective.compute_advantages(experience)
        return experience

    def _with_eos_penalty(self, spans: list[PromptCompletion], rewards: torch.Tensor) -> torch.Tensor:
        penalty = self.objective.config.missing_eos_penalty
        clipped = torch.tensor([completion[-1] != self.generation.stop_id for _, completion in spans])
        return rewards if penalty is None else rewards - penalty * clipped

    def _metrics(self, experience: Experience, rewards: torch.Tensor) -> dict[str, tuple[float, float]]:
        num_clipped = sum(completion[-1] != self.generation.stop_id for _, completion in experience.spans)
        count = len(experience.spans)
        metrics = {
            "reward": (float(rewards.sum()), count),
            "reward_std": (float(rewards.std(unbiased=False)), 1.0),
            "completions/mean_length": (float(sum(experience.lengths)), count),
            "completions/clipped_ratio": (float(num_clipped), count),
        }
        if experience.ref_logps_N is not None:
            metrics["kl"] = (float((experience.old_logps_N - experience.ref_logps_N).sum()), count)
        return metrics

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean reward of greedy completions to the validation prompts; `loss` is its negative.

        Both are NaN without validation prompts.
        """
        was_training, total = self.model.training, 0.0
        self.model.eval()
        rows, size = self.eval_dataset, self.args.per_device_train_batch_size
        for start in range(0, len(rows), size):
            members = [rows[i] for i in range(start, min(start + size, len(rows)))]
            prompts = [row["prompt_ids"] for row in members]
            with self.autocast():
                completions = rollout.generate_completions(self.model, prompts, self.generation, greedy=True)
                spans = list(zip(prompts, completions, strict=True))
                total += sum(self.reward_function(spans, [row["completion_ids"] for row in members]))
        self.model.train(was_training)
        reward = total / len(rows) if len(rows) else float("nan")
        return {"loss": -reward, "reward": reward}
