"""Score one model on the held-out examples and the exams; each answer is kept, none is asked for twice."""

from collections.abc import Callable

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuneline.config.evaluate import EvaluateStepConfig
from tuneline.data import render
from tuneline.data.tokenizer import load_tokenizer
from tuneline.evaluation import exam as taking
from tuneline.evaluation import generate, judge, likelihood, rouge
from tuneline.evaluation.candidate import Candidate as Candidate
from tuneline.evaluation.candidate import base as base
from tuneline.evaluation.candidate import trained as trained
from tuneline.evaluation.items import Item, Score, remembered, score
from tuneline.identity import Manifest, digest

HELD_OUT = "held_out"


def score_all(
    candidate: Candidate, tokenizer_manifest: Manifest, held_out: Dataset, exams: Manifest, config: EvaluateStepConfig
) -> list[Score]:
    """Return the scores of a model on every item of the recipe, in a fixed order."""
    tokenizer = load_tokenizer(tokenizer_manifest)
    scores = _held_out(candidate, tokenizer_manifest, tokenizer, held_out, config)
    for exam in config.exams:
        scores += taking.sit(candidate, tokenizer_manifest, tokenizer, exams, exam)
    return scores


def _held_out(
    candidate: Candidate,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    config: EvaluateStepConfig,
) -> list[Score]:
    """Ask for the last answer of held-out chats; judge texts and pairs by their likelihood."""
    if likelihood.is_by_likelihood(held_out):
        window = config.window
        protocol = digest([likelihood.VERSION, tokenizer_manifest.content_hash(), window, "float32"])
        items = likelihood.items(held_out, config.max_items)
        judge = likelihood.Judge(lambda: candidate.model, lambda: candidate.head, tokenizer, window)
        answer = judge.scorer(held_out, title=f"likelihoods of {candidate.name}")
    else:
        protocol = generation_protocol(tokenizer_manifest, config)
        items = held_out_items(held_out, tokenizer, config.max_items)
        answer = _generator(candidate, tokenizer, config)
    return remembered(candidate.content_hash, protocol, items, answer)


def generation_protocol(tokenizer: Manifest, config: EvaluateStepConfig) -> str:
    """Name how answers are made and scored; another way is another protocol."""
    judged = [judge.name(config)] if config.judged else []
    return digest(["greedy", tokenizer.content_hash(), config.max_new_tokens, rouge.VERSION, "float32", *judged])


def held_out_items(held_out: Dataset, tokenizer: PreTrainedTokenizerBase, max_items: int | None) -> list[Item]:
    """Ask for the last answer of each held-out example."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item(HELD_OUT, row["id"], *render.prompt(row["messages"], row["tools"], tokenizer)) for row in rows]


def _generator(
    candidate: Candidate, tokenizer: PreTrainedTokenizerBase, config: EvaluateStepConfig
) -> Callable[[list[Item]], list[Score]]:
    def answer(items: list[Item]) -> list[Score]:
        prompts = [item.prompt for item in items]
        title = f"answers of {candidate.name}"
        outputs = generate.answers(
            candidate.model, tokenizer, prompts, config.max_new_tokens, config.batch_size, title=title
        )
        references = [item.reference for item in items]
        metric = rouge.Rouge(keep_in_memory=True)
        columns = metric.compute(predictions=outputs, references=references, aggregate=False)
        if config.judged:
            columns["reward"] = judge.of(config, tokenizer)(prompts, outputs, references)
        rows = [{kind: column[i] for kind, column in columns.items()} for i in range(len(items))]
        return [score(*parts) for parts in zip(items, outputs, rows, strict=True)]

    return answer
