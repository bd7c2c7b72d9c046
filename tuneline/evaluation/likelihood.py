"""Held-out rows judged by the probability that a model gives them: texts, pairs of answers, labelled answers.

A text has its mean log-likelihood a token; its negative is the logarithm of the perplexity. A pair is right where the
chosen answer is likelier a token than the rejected one, which is the reward of SimPO (Meng et al. 2024,
arXiv:2405.14734) and needs no reference model, so that the base model can be judged by it too. A labelled answer counts
with the sign of its label.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress
from tuneline.config.data import TokenizeStepConfig
from tuneline.data import pairs, schema
from tuneline.data.sequences import Example, Sequencer
from tuneline.evaluation.items import Item, Score, score

VERSION = "likelihood-1"
ANY_LENGTH = 2**31 - 1

Answers = Callable[[list[Item]], list[Score]]
Span = tuple[list[int], int]
"""Token ids, and how many of them stand in front of what is scored."""


def items(held_out: Dataset, max_items: int | None) -> list[Item]:
    """Return an item for each held-out text or pair; the first by id where `max_items` says so."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item("held_out", row["id"], _asked(row), _wanted(row)) for row in rows]


def scorer(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    *,
    window: int,
    title: str,
) -> Answers:
    """Return what scores items.

    Args:
        load: Returns the model; called when there is something to score.
        tokenizer: The one that it is served with.
        held_out: The examples behind the items.
        window: Tokens of one forward pass; a longer text is scored in windows, each token but the first of a window.
        title: Shown beside the progress.
    """

    def answer(wanted: list[Item]) -> list[Score]:
        examples = {row["id"]: row for row in held_out}
        kind = schema.kind(held_out[0])
        config = _config(kind)
        sequencer = Sequencer(tokenizer, config)
        found: list[Score] = []
        with progress.bar(title, len(wanted)) as advance:
            for item in wanted:
                example = examples[item.id]
                if kind == "text":
                    (_, tokens), *_ = sequencer.sequences([example])
                    found.append(score(item, "", {"log_likelihood": mean(load(), _windows(tokens.input_ids, window))}))
                else:
                    row = pairs.of_example(example, sequencer, config, kind)
                    found.append(_judged(item, example, _likelihoods(load(), row)))
                advance(len(found))
        return found

    return answer


def is_by_likelihood(held_out: Dataset) -> bool:
    """Tell texts, pairs and labelled answers, which are scored here, from chats, whose last answer is asked for."""
    return held_out.num_rows > 0 and schema.kind(held_out[0]) != "chat"


def _config(kind: str) -> TokenizeStepConfig:
    stage = "pretrain" if kind == "text" else kind
    return TokenizeStepConfig.model_validate({"stage": stage, "max_length": ANY_LENGTH, "packing": False})


def _likelihoods(model: PreTrainedModel, row: pairs.Row) -> dict[str, float]:
    """Return the mean log-likelihood of each answer of a row."""
    prompt = row["prompt_ids"]
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    return {name: mean(model, [(prompt + row[f"{name}_ids"], len(prompt))]) for name in names}


def _judged(item: Item, example: Example, found: dict[str, float]) -> Score:
    if "completion" in found:
        sign = 1 if example["label"] else -1
        return score(item, "", {"signed_log_likelihood": sign * found["completion"]})
    right = found["chosen"] > found["rejected"]
    said = example["chosen" if right else "rejected"][-1]["content"]
    return score(item, said, {"preference_accuracy": float(right), "log_likelihood": found["chosen"]})


def _windows(ids: list[int], window: int) -> Iterator[Span]:
    """Cut a text; the first token of each piece is given, not scored."""
    for start in range(0, max(len(ids) - 1, 1), window - 1):
        yield ids[start : start + window], 1


@torch.inference_mode()
def mean(model: PreTrainedModel, spans: Iterable[Span]) -> float:
    """Return the mean log-likelihood (nats a token) of what stands behind the given tokens; NaN where nothing does."""
    total, count = 0.0, 0
    for ids, given in spans:
        if len(ids) <= given:
            continue
        row = torch.tensor([ids], device=model.device)
        logits = model(input_ids=row, use_cache=False).logits[0, given - 1 : -1].float()
        total -= float(cross_entropy(logits, row[0, given:], reduction="sum"))
        count += len(ids) - given
    return total / count if count else float("nan")


def _asked(row: schema.Content) -> str:
    return row["text"] if row["text"] else "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])


def _wanted(row: schema.Content) -> str:
    if row["chosen"]:
        return row["chosen"][-1]["content"]
    return row["messages"][-1]["content"] if row["messages"] else ""
