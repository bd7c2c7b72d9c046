"""One step of reinforcement learning: draw answers, judge them, and learn from them in a few updates.

A step of transformers' Trainer is all of that, so that schedule, checkpoints, signals and figures are those of every
other stage: the last update of a step is the one that the Trainer makes itself.
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
    """Give a loop what it draws answers with, and who judges them."""
    tokenizer = load_tokenizer(job.tokenizer)
    config = loop.objective.config
    loop.drawing = generation_options(tokenizer, config.max_completion_length, config.temperature)
    loop.judge = build_reward_function(job, loop.model, tokenizer)


class RLTrainer(StageTrainer):
    """Learns from rewards on its own answers."""

    objective: RLObjective
    drawing: GenerationOptions
    judge: RewardFunction

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Draw, judge, and make all updates but the last, which is left to the Trainer."""
        experience = self._experience(self.objective.asked(inputs))
        model.train()
        batches = self.objective.minibatches(len(experience.spans))
        losses = []
        for number, members in enumerate(batches):
            with self.compute_loss_context_manager():
                loss = self._loss(model, experience.part(members), experience)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
            if number + 1 < len(batches):
                if self.args.max_grad_norm:  # 0 stands for no limit, and clipping to it would leave nothing
                    self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return torch.stack(losses).mean()

    def _loss(self, model: Any, part: Experience, whole: Experience) -> torch.Tensor:
        inputs = self._inputs(part.spans)
        self.tokens_seen += inputs["input_ids"].numel()
        self.tokens_trained += sum(part.lengths)
        found = self.objective.update(model, inputs, part, whole, self.token_losses)
        self.accumulate_metrics(found.figures)
        return found.total

    def _inputs(self, spans: list[PromptCompletion]) -> dict[str, Any]:
        return move_to_device(collate([preference_rows.concatenate_segments(spans)]), self.model.device)

    @torch.no_grad()
    def _experience(self, asked: list[tuple[list[int], list[int]]]) -> Experience:
        """Draw answers to prompts, and have all roles judge them."""
        self.model.eval()
        with self.autocast():
            prompts = [prompt for prompt, _ in asked]
            drawn = rollout.generate_completions(self.model, prompts, self.drawing)
            spans = list(zip(prompts, drawn, strict=True))
            rewards = torch.tensor(self.judge(spans, [reference for _, reference in asked]))
            inputs = self._inputs(spans)
            old_N, values_N = self.objective.said(self.model, inputs, self.token_losses)
            ref_N = None
            if self.objective.needs_reference:
                with as_reference(self.family, self.model):
                    ref_N = self.objective.said(self.model, inputs, self.token_losses, values=False)[0]
        made = Experience(spans, self._penalised(spans, rewards), old_N, ref_N, values_N=values_N)
        self.accumulate_metrics(self._figures(made, rewards))
        self.objective.judge(made)
        return made

    def _penalised(self, spans: list[PromptCompletion], rewards: torch.Tensor) -> torch.Tensor:
        penalty = self.objective.config.missing_eos_penalty
        unfinished = torch.tensor([answer[-1] != self.drawing.stop_id for _, answer in spans])
        return rewards if penalty is None else rewards - penalty * unfinished

    def _figures(self, made: Experience, rewards: torch.Tensor) -> dict[str, tuple[float, float]]:
        cut = sum(answer[-1] != self.drawing.stop_id for _, answer in made.spans)
        count = len(made.spans)
        found = {
            "reward": (float(rewards.sum()), count),
            "reward_std": (float(rewards.std(unbiased=False)), 1.0),
            "completions/mean_length": (float(sum(made.lengths)), count),
            "completions/clipped_ratio": (float(cut), count),
        }
        if made.ref_logps_N is not None:
            found["kl"] = (float((made.old_logps_N - made.ref_logps_N).sum()), count)
        return found

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean reward of greedy answers to held-out prompts; `loss` is its negative, so that less is better.

        NaN where there are no held-out prompts.
        """
        training, total = self.model.training, 0.0
        self.model.eval()
        rows, size = self.eval_dataset, self.args.per_device_train_batch_size
        for start in range(0, len(rows), size):
            members = [rows[i] for i in range(start, min(start + size, len(rows)))]
            prompts = [row["prompt_ids"] for row in members]
            with self.autocast():
                drawn = rollout.generate_completions(self.model, prompts, self.drawing, greedy=True)
                spans = list(zip(prompts, drawn, strict=True))
                total += sum(self.judge(spans, [row["completion_ids"] for row in members]))
        self.model.train(training)
        reward = total / len(rows) if len(rows) else float("nan")
        return {"loss": -reward, "reward": reward}
