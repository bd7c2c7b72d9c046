"""Multiple-choice scoring by the log-probability of each answer letter as the next token.

The prompts are those of MMLU (Hendrycks et al. 2021, arXiv:2009.03300), CMMLU (Li et al. 2023, arXiv:2306.09212) and
C-Eval (Huang et al. 2023, arXiv:2305.08322), as in lm-evaluation-harness.

One forward pass per question. The common prefix of a subject's prompts (the few-shot examples) is computed once.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline.config.sections import exams
from tuneline.data.benchmarks.multiple_choice import LETTERS, Question
from tuneline.errors import SourceError
from tuneline.evaluation.generation import prefix_cache

BATCH_TOKENS = 1024
"""Tokens per batch on a CPU, without the common prefix. Larger batches copy more of the cache (docs/log.md)."""


HEADERS = {
    "mmlu": "The following are multiple choice questions (with answers) about {subject}.",
    "cmmlu": "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。",
    "ceval": "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。",
}
"""First line of the prompt, as in the original papers and in lm-evaluation-harness."""

ANSWER_PREFIXES = {"mmlu": "Answer:", "cmmlu": "答案：", "ceval": "答案："}


def prompt(question: Question, shots: Sequence[Question], benchmark: str = "mmlu") -> str:
    """Return the prompt: header, few-shot examples, question."""
    header = HEADERS[benchmark].format(subject=exams.subject_title(benchmark, question.subject))
    examples = [f"{_format_question(shot, benchmark)} {shot.answer}" for shot in shots]
    return "\n\n".join([header, *examples, _format_question(question, benchmark)])


def _format_question(question: Question, benchmark: str) -> str:
    choices = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return "\n".join([question.text.strip(), *choices, ANSWER_PREFIXES[benchmark]])


@torch.inference_mode()
def letter_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_tokens: int | None = None
) -> torch.Tensor:
    """Return the log-probability of each letter after each prompt, [prompts, letters], in order.

    Raises:
        SourceError: The tokenizer does not encode each letter as one token.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS if model.device.type == "cpu" else 8 * BATCH_TOKENS
    rows = tokenizer(list(prompts))["input_ids"]
    letters = torch.tensor(_letter_ids(tokenizer), device=model.device)
    scores = torch.empty(len(rows), len(LETTERS))
    for members, logits in prefix_cache.last_logits(model, rows, batch_tokens):
        scores[members] = logits.log_softmax(-1)[:, letters].cpu()
    return scores


def _letter_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(tokens) != 1 for tokens in ids) or len({tokens[0] for tokens in ids}) != len(LETTERS):
        raise SourceError(
            "The tokenizer does not encode ' A' to ' D' as one token each, so their probabilities cannot be compared. "
            "Remove the exam, or evaluate it with engine: lm_eval."
        )
    return [tokens[0] for tokens in ids]
