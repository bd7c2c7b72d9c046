"""Held-out rows judged by the probability that a model gives them: texts, pairs of answers, labelled answers.

A reward model judges pairs by its rewards instead.

A text has its mean log-likelihood a token; its negative is the logarithm of the perplexity. A pair is right where the
chosen answer is likelier a token than the rejected one, which is the reward of SimPO (Meng et al. 2024,
arXiv:2405.14734) and needs no reference model, so that the base model can be judged by it too. A labelled answer counts
with the sign of its label.
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
"""Token ids, and how many of them stand in front of what is scored."""


def items(held_out: Dataset, max_items: int | None) -> list[Item]:
    """Return an item for each held-out text or pair; the first by id where `max_items` says so."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item("held_out", row["id"], _prompt_text(row), _reference_text(row)) for row in rows]


@dataclass(frozen=True)
class LikelihoodScorer:
    """A model, and how it is asked."""

    model: Callable[[], PreTrainedModel]
    """Returns the model; called when there is something to score."""

    head: Callable[[], ValueHead | None]
    """Returns the head of a reward model, which judges pairs by their rewards; None for other models."""

    tokenizer: PreTrainedTokenizerBase
    """The one that it is served with."""

    window: int
    """Tokens of one forward pass; a longer text is scored in windows, each token but the first of a window."""

    def scorer(self, held_out: Dataset, *, title: str) -> Answers:
        """Return what scores items.

        Args:
            held_out: The examples behind the items.
            title: Shown beside the progress.
        """

        def answer(wanted: list[Item]) -> Iterator[Score]:
            examples = {row["id"]: row for row in held_out}
            kind = schema.kind(held_out[0])
            config = _config(kind)
            sequencer = Sequencer(self.tokenizer, config)
            with progress.bar(title, len(wanted)) as advance:
                for done, item in enumerate(wanted, start=1):
                    start = time.perf_counter()
                    found = self._scored(item, examples[item.id], sequencer, config, kind)
                    yield replace(found, seconds=time.perf_counter() - start)
                    advance(done)

        return answer

    def _scored(
        self, item: Item, example: Example, sequencer: Sequencer, config: TokenizeStepConfig, kind: str
    ) -> Score:
        if kind == "text":
            (_, tokens), *_ = sequencer.sequences([example])
            spans = list(_windows(tokens.input_ids, self.window))
            scored = sum(max(len(ids) - given, 0) for ids, given in spans)
            return score_answer(item, "", {"log_likelihood": mean_log_likelihood(self.model(), spans)}, tokens=scored)
        row = preference_rows.build_row(example, sequencer, config, kind)
        return _to_score(item, example, _likelihoods(self.model(), row), _rewards(self.model(), self.head(), row))


def uses_log_likelihood(held_out: Dataset) -> bool:
    """Tell texts, pairs and labelled answers, which are scored here, from chats, whose last answer is asked for."""
    return held_out.num_rows > 0 and schema.kind(held_out[0]) != "chat"


def _config(kind: str) -> TokenizeStepConfig:
    stage = "pretrain" if kind == "text" else kind
    config = TokenizeStepConfig.model_validate({"stage": stage, "packing": False})
    return config.model_copy(update={"max_length": ANY_LENGTH})  # beyond what a recipe may ask for: nothing is cut


def _likelihoods(model: PreTrainedModel, row: preference_rows.Row) -> dict[str, float]:
    """Return the mean log-likelihood of each answer of a row."""
    prompt = row["prompt_ids"]
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    return {name: mean_log_likelihood(model, [(prompt + row[f"{name}_ids"], len(prompt))]) for name in names}


@torch.inference_mode()
def _rewards(model: PreTrainedModel, head: ValueHead | None, row: preference_rows.Row) -> dict[str, float]:
    """Return the reward of each answer of a pair, read at its last token; nothing where there is no head."""
    if head is None or "chosen_ids" not in row:
        return {}
    found = {}
    for name in ("chosen", "rejected"):
        ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]], device=model.device)
        found[name] = float(value_head.compute_values(model, head, input_ids=ids, use_cache=False)[0, -1])
    return found


def _to_score(item: Item, example: Example, found: dict[str, float], rewards: dict[str, float]) -> Score:
    if "completion" in found:
        sign = 1 if example["label"] else -1
        return score_answer(item, "", {"signed_log_likelihood": sign * found["completion"]})
    by = rewards or found
    right = by["chosen"] > by["rejected"]
    said = example["chosen" if right else "rejected"][-1]["content"]
    return score_answer(item, said, {"preference_accuracy": float(right), "log_likelihood": found["chosen"]})


def _windows(ids: list[int], window: int) -> Iterator[Span]:
    """Cut a text; the first token of each piece is given, not scored."""
    for start in range(0, max(len(ids) - 1, 1), window - 1):
        yield ids[start : start + window], 1


@torch.inference_mode()
def mean_log_likelihood(model: PreTrainedModel, spans: Iterable[Span]) -> float:
    """Return the mean log-likelihood (nats a token) of what stands behind the given tokens; NaN where nothing does."""
    total, count = 0.0, 0
    for ids, given in spans:
        if len(ids) <= given:
            continue
        row = torch.tensor([ids], device=model.device)
        logits = model(input_ids=row, use_cache=False).logits[0, -len(ids) :]  # without those of virtual tokens
        total -= float(cross_entropy(logits[given - 1 : -1].float(), row[0, given:], reduction="sum"))
        count += len(ids) - given
    return total / count if count else float("nan")


def _prompt_text(row: schema.Content) -> str:
    return row["text"] if row["text"] else "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])


def _reference_text(row: schema.Content) -> str:
    if row["chosen"]:
        return row["chosen"][-1]["content"]
    return row["messages"][-1]["content"] if row["messages"] else ""
