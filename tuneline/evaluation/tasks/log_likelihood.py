"""Log-likelihood scores of held-out rows: texts, preference pairs and labeled answers.

A text is scored by its mean log-likelihood per token; the negative is the logarithm of the perplexity. A pair counts as
correct if the chosen answer has the higher mean log-likelihood per token. This is the reward of SimPO (Meng et al.
2024, arXiv:2405.14734); it needs no reference model, so it also applies to the base model. A reward model scores pairs
by its rewards instead. The log-likelihood of a labeled answer is negated if its label is false.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data import schema
from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenization.sequencer import Example, Sequencer
from tuneline.evaluation.score_store import Item, Score, score_answer
from tuneline.model import value_head
from tuneline.model.value_head import ValueHead

VERSION = "likelihood-3"
ANY_LENGTH = 2**31 - 1

Answers = Callable[[list[Item]], Iterator[Score]]
Span = tuple[list[int], int]
"""Token ids, and the number of context tokens before the scored ones."""


def items(held_out: Dataset, max_items: int | None) -> list[Item]:
    """Return one item per held-out row; the first `max_items` by id."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item("held_out", row["id"], _prompt_text(row), _reference_text(row)) for row in rows]


@dataclass(frozen=True)
class LikelihoodScorer:
    """Score held-out rows with a model that is loaded on first use."""

    model: Callable[[], PreTrainedModel]
    """Return the model; called only if there is something to score."""

    head: Callable[[], ValueHead | None]
    """Return the value head of a reward model, which scores pairs by their rewards; None for other models."""

    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of the model."""

    window: int
    """Maximum tokens per forward pass. Longer texts are scored in windows, without the first token of each window."""

    def scorer(self, held_out: Dataset, *, title: str) -> Answers:
        """Return a function that scores items.

        Args:
            held_out: Examples of the items.
            title: Title of the progress bar.
        """

        def answer(missing: list[Item]) -> Iterator[Score]:
            examples = {row["id"]: row for row in held_out}
            kind = schema.kind(held_out[0])
            config = _config(kind)
            sequencer = Sequencer(self.tokenizer, config)
            with progress.bar(title, len(missing)) as advance:
                for done, item in enumerate(missing, start=1):
                    start = time.perf_counter()
                    result = self._score(item, examples[item.id], sequencer, config, kind)
                    yield replace(result, seconds=time.perf_counter() - start)
                    advance(done)

        return answer

    def _score(
        self, item: Item, example: Example, sequencer: Sequencer, config: TokenizeStepConfig, kind: str
    ) -> Score:
        if kind == "text":
            (_, tokens), *_ = sequencer.sequences([example])
            spans = list(_windows(tokens.input_ids, self.window))
            num_scored = sum(max(len(ids) - num_context, 0) for ids, num_context in spans)
            return score_answer(
                item, "", {"log_likelihood": mean_log_likelihood(self.model(), spans)}, tokens=num_scored
            )
        row = preference_rows.build_row(example, sequencer, config, kind)
        return _to_score(item, example, _likelihoods(self.model(), row), _rewards(self.model(), self.head(), row))


def uses_log_likelihood(held_out: Dataset) -> bool:
    """Return whether rows are texts, pairs or labeled answers, which are scored here, rather than chats."""
    return held_out.num_rows > 0 and schema.kind(held_out[0]) != "chat"


def _config(kind: str) -> TokenizeStepConfig:
    stage = "pretrain" if kind == "text" else kind
    config = TokenizeStepConfig.model_validate({"stage": stage, "packing": False})
    return config.model_copy(update={"max_length": ANY_LENGTH})  # nothing is truncated


def _likelihoods(model: PreTrainedModel, row: preference_rows.Row) -> dict[str, float]:
    """Return the mean log-likelihood of each answer of a row."""
    prompt = row["prompt_ids"]
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    return {name: mean_log_likelihood(model, [(prompt + row[f"{name}_ids"], len(prompt))]) for name in names}


@torch.inference_mode()
def _rewards(model: PreTrainedModel, head: ValueHead | None, row: preference_rows.Row) -> dict[str, float]:
    """Return the reward of each answer of a pair, at its last token; empty without a value head."""
    if head is None or "chosen_ids" not in row:
        return {}
    rewards = {}
    for name in ("chosen", "rejected"):
        ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]], device=model.device)
        rewards[name] = float(value_head.compute_values(model, head, input_ids=ids, use_cache=False)[0, -1])
    return rewards


def _to_score(item: Item, example: Example, likelihoods: dict[str, float], rewards: dict[str, float]) -> Score:
    if "completion" in likelihoods:
        sign = 1 if example["label"] else -1
        return score_answer(item, "", {"signed_log_likelihood": sign * likelihoods["completion"]})
    values = rewards or likelihoods
    correct = values["chosen"] > values["rejected"]
    answer = example["chosen" if correct else "rejected"][-1]["content"]
    return score_answer(item, answer, {"preference_accuracy": float(correct), "log_likelihood": likelihoods["chosen"]})


def _windows(ids: list[int], window: int) -> Iterator[Span]:
    """Split a text into windows; the first token of each window is context."""
    for start in range(0, max(len(ids) - 1, 1), window - 1):
        yield ids[start : start + window], 1


@torch.inference_mode()
def mean_log_likelihood(model: PreTrainedModel, spans: Iterable[Span]) -> float:
    """Return the mean log-likelihood (nats per token) of the tokens after the context; NaN if there are none."""
    total, count = 0.0, 0
    for ids, num_context in spans:
        if len(ids) <= num_context:
            continue
        row = torch.tensor([ids], device=model.device)
        logits = model(input_ids=row, use_cache=False).logits[0, -len(ids) :]  # without logits of virtual tokens
        total -= float(cross_entropy(logits[num_context - 1 : -1].float(), row[0, num_context:], reduction="sum"))
        count += len(ids) - num_context
    return total / count if count else float("nan")


def _prompt_text(row: schema.Content) -> str:
    return row["text"] if row["text"] else "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])


def _reference_text(row: schema.Content) -> str:
    if row["chosen"]:
        return row["chosen"][-1]["content"]
    return row["messages"][-1]["content"] if row["messages"] else ""
