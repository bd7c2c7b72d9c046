"""A few answers at each evaluation, so that one can read what is learned: greedy, to the first held-out prompts."""

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
    """The prompts, and how they are answered."""

    prompts: list[TokenIds]
    tokenizer: PreTrainedTokenizerBase
    drawing: GenerationOptions

    def answers(self, model: Any, step: int) -> list[dict[str, Any]]:
        """Return `step`, `prompt` and `answer` of each prompt; the model's mode is left as it was."""
        training = model.training
        model.eval()
        drawn = rollout.generate_completions(model, self.prompts, self.drawing, greedy=True)
        model.train(training)
        texts = [self.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (self.prompts, drawn)]
        return [{"step": step, "prompt": asked, "answer": said} for asked, said in zip(*texts, strict=True)]


def build_sampler(job: TrainingJob) -> SampleGenerator | None:
    """Return what samples the first held-out prompts of a job; None where there are none."""
    tokenizer = load_tokenizer(job.tokenizer)
    rows = job.rows.splits["validation"]
    found = [
        _prompt(preference_rows.flatten_row(row)) for row in rows.select(range(min(job.config.eval_samples, len(rows))))
    ]
    prompts = [prompt for prompt in found if prompt]
    drawing = rollout.generation_options(tokenizer, job.config.eval_sample_tokens)
    return SampleGenerator(prompts, tokenizer, drawing) if prompts else None


def _prompt(row: dict[str, Any]) -> TokenIds:
    """Return what stands before the first trained token of a row; of a text, its first half."""
    first = next((i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    ids: TokenIds = row["input_ids"]
    return ids[:first] if first > 1 else ids[: max(row["lengths"][0] // 2, 1)]
