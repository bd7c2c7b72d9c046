"""Multiple-choice scoring: the log-likelihood of each letter as the next token.

The prompts are those of MMLU (Hendrycks et al. 2021, arXiv:2009.03300), CMMLU (Li et al. 2023, arXiv:2306.09212) and
C-Eval (Huang et al. 2023, arXiv:2305.08322), as lm-evaluation-harness puts them.

One forward pass a question. What the prompts of a subject share (the solved questions) is computed once: the longest
common prefix of the *tokenized* prompts, so that no token is cut otherwise than in a prompt by itself. Left padding
stands between that prefix and the question, and position ids skip it; only the last position's logits are computed.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tuneline.config import exams
from tuneline.data.benchmarks import LETTERS, Question
from tuneline.errors import SourceError

BATCH_TOKENS = 1024
"""Tokens of a batch on a CPU, without the shared ones: larger batches copy more of the cache (docs/log.md)."""


HEADS = {
    "mmlu": "The following are multiple choice questions (with answers) about {subject}.",
    "cmmlu": "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。",
    "ceval": "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。",
}
"""First line of the prompt, as their authors and lm-evaluation-harness write it."""

ANSWERS = {"mmlu": "Answer:", "cmmlu": "答案：", "ceval": "答案："}


def prompt(question: Question, shots: Sequence[Question], benchmark: str = "mmlu") -> str:
    """Return the prompt of a benchmark's authors: header, solved questions, the question."""
    head = HEADS[benchmark].format(subject=exams.title(benchmark, question.subject))
    solved = [f"{_show(shot, benchmark)} {shot.answer}" for shot in shots]
    return "\n\n".join([head, *solved, _show(question, benchmark)])


def _show(question: Question, benchmark: str) -> str:
    choices = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return "\n".join([question.text.strip(), *choices, ANSWERS[benchmark]])


@torch.inference_mode()
def letter_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_tokens: int | None = None
) -> torch.Tensor:
    """Return the log-probability of each letter after each prompt, [prompts, letters], in order.

    Raises:
        SourceError: The tokenizer does not write each letter as one token.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS if model.device.type == "cpu" else 8 * BATCH_TOKENS
    rows = tokenizer(list(prompts))["input_ids"]
    letters = torch.tensor(_letter_ids(tokenizer), device=model.device)
    if _has_virtual_tokens(model):
        return torch.stack([_last_logits_alone(model, row).log_softmax(-1)[letters].cpu() for row in rows])
    shared = _common_prefix(rows)
    cache = _prefix_cache(model, rows[0][:shared]) if shared else None
    scores = torch.empty(len(rows), len(LETTERS))
    for members in _batches([len(row) - shared for row in rows], batch_tokens):
        tails = [rows[i][shared:] for i in members]
        logits = _last_logits(model, tails, shared, cache)
        scores[members] = logits.float().log_softmax(-1)[:, letters].cpu()
    return scores


def _has_virtual_tokens(model: PreTrainedModel) -> bool:
    """Tell whether peft puts tokens of its own in front of whatever a model is given."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _last_logits_alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Return the last logits of one prompt: peft makes mask, positions and cache for virtual tokens itself."""
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()


def _letter_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(tokens) != 1 for tokens in ids) or len({tokens[0] for tokens in ids}) != len(LETTERS):
        raise SourceError(
            "This tokenizer does not write ' A' to ' D' as one token each, so letters cannot be compared."
        )
    return [tokens[0] for tokens in ids]


def _common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with, leaving each at least one to score."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)
    differs = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return min(next(differs, len(low)), min(map(len, rows)) - 1)


def _prefix_cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _last_logits(
    model: PreTrainedModel, tails: list[list[int]], shared: int, cache: DynamicCache | None
) -> torch.Tensor:
    width = max(map(len, tails))
    ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails], device=model.device)
    mask = torch.tensor([[1] * shared + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails])
    mask = mask.to(model.device)
    past = copy.deepcopy(cache)
    if past is not None:
        past.batch_repeat_interleave(len(tails))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, shared:]
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=past,
        use_cache=past is not None,
        logits_to_keep=1,
    ).logits[:, -1]
