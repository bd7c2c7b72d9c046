"""Generates greedy answers to the first validation prompts at each evaluation, so that progress can be read."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.schema import IGNORE_INDEX
from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.train import rollout
from tuneline.train.job import TrainingJob
from tuneline.train.rollout import GenerationOptions, TokenIds


@dataclass(frozen=True)
class SampleGenerator:
    """Prompts, tokenizer and generation options."""

    prompts: list[TokenIds]
    tokenizer: PreTrainedTokenizerBase
    options: GenerationOptions

    def generate(self, model: Any, step: int) -> list[dict[str, Any]]:
        """Return `step`, `prompt` and `answer` for each prompt; restores the mode of the model."""
        was_training = model.training
        model.eval()
        completions = rollout.generate_completions(model, self.prompts, self.options, greedy=True)
        model.train(was_training)
        texts = [self.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (self.prompts, completions)]
        return [{"step": step, "prompt": prompt, "answer": answer} for prompt, answer in zip(*texts, strict=True)]


def build_sampler(job: TrainingJob) -> SampleGenerator | None:
    """Return a generator for the first validation prompts of a job; None without prompts."""
    tokenizer = load_tokenizer(job.tokenizer)
    rows = job.rows.splits["validation"]
    selection = rows.select(range(min(job.config.eval_samples, len(rows))))
    prompts = [prompt for row in selection if (prompt := _prompt(preference_rows.flatten_row(row)))]
    options = rollout.generation_options(tokenizer, job.config.eval_sample_tokens)
    return SampleGenerator(prompts, tokenizer, options) if prompts else None


def _prompt(row: dict[str, Any]) -> TokenIds:
    """Return the tokens before the first trained token of a row; for a plain text, its first half."""
    first = next((i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    ids: TokenIds = row["input_ids"]
    return ids[:first] if first > 1 else ids[: max(row["lengths"][0] // 2, 1)]
