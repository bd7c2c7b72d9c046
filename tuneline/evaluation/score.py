"""Score a model on the held-out examples and the benchmarks of a recipe. Scores are cached per model and item."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.data.chat_template import render
from tuneline.data.corpus import Corpus
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.evaluation import environment
from tuneline.evaluation.generation import generate
from tuneline.evaluation.generation.generate import SamplingConfig
from tuneline.evaluation.metrics import corpus_level, metric_registry, text_tokenizer
from tuneline.evaluation.model_under_test import EvaluatedModel
from tuneline.evaluation.report import Report
from tuneline.evaluation.score_store import Item, Score, score_answer, score_with_cache
from tuneline.evaluation.tasks import lm_eval, log_likelihood, reward
from tuneline.evaluation.tasks import multiple_choice as taking
from tuneline.identity import Manifest, digest
from tuneline.metric_tables import HELD_OUT, by_metric

GENERATION_VERSION = 3
"""Version of answer generation; part of the protocol, so a change generates all answers again."""


def score_all(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    held_out: Dataset,
    exams: Manifest,
    config: EvaluateStepConfig,
) -> list[Score]:
    """Return the scores of a model on every item of the recipe, in a fixed order."""
    tokenizer = load_tokenizer(tokenizer_manifest)
    scores = _score_held_out(candidate, tokenizer_manifest, tokenizer, held_out, config)
    for exam in config.exams:
        scores += taking.run_task(candidate, tokenizer_manifest, tokenizer, exams, exam)
    for task in config.harness:
        scores += lm_eval.run_task(candidate, tokenizer_manifest, tokenizer, exams, task)
    return scores


def report(
    before: EvaluatedModel,
    after: EvaluatedModel,
    tokenizer: Manifest,
    mixture: Corpus,
    exams: Manifest,
    config: EvaluateStepConfig,
) -> Report:
    """Score both models on the same items, mark contaminated items, and build the report.

    Only one model is in memory at a time: the first is scored on all items before the second is loaded.
    """
    held_out, contamination = mixture.splits["validation"], mixture.splits["contamination"]
    scores, bands = {}, {}
    for role, candidate in (("base", before), ("model", after)):
        scores[role] = mark_contaminated(score_all(candidate, tokenizer, held_out, exams, config), contamination)
        bands[role] = noise_band(candidate, tokenizer, held_out, config)
        candidate.release()
    return Report(
        **scores,
        base_hash=before.content_hash,
        model_hash=after.content_hash,
        totals={role: corpus_level.corpus_scores(each, config) for role, each in scores.items()},
        methods=environment.describe(after.dtype) | corpus_level.describe_methods(scores["model"], config),
        noise={role: band for role, band in bands.items() if band},
    )


def _score_held_out(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    config: EvaluateStepConfig,
) -> list[Score]:
    """Score held-out rows: chats by their generated last answer, texts and pairs by log-likelihood."""
    if not log_likelihood.uses_log_likelihood(held_out):
        return _score_generated(candidate, tokenizer_manifest, tokenizer, held_out, config)
    window = config.window
    protocol = digest([log_likelihood.VERSION, tokenizer_manifest.content_hash(), window, candidate.setting])
    items = log_likelihood.items(held_out, config.max_items)
    scorer = log_likelihood.LikelihoodScorer(lambda: candidate.model, lambda: candidate.head, tokenizer, window)
    answer = scorer.scorer(held_out, title=f"likelihoods of {candidate.name}")
    return score_with_cache(candidate.content_hash, protocol, items, answer)


def _score_generated(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    config: EvaluateStepConfig,
    draw: SamplingConfig | None = None,
) -> list[Score]:
    """Score generated answers. Answers and scores are cached separately, so a new metric generates nothing again."""
    items = held_out_items(held_out, tokenizer, config.max_items)
    references = [item.reference for item in items]
    cut = text_tokenizer.resolve_cut(config.cut, references)
    tokenize = text_tokenizer.bleu_tokenizer(cut, references)
    generation = generation_protocol(tokenizer_manifest, config, draw, candidate.setting)
    reward_ids = [reward.reward_id(config)] if config.has_reward else []

    def scorer(missing: list[Item]) -> list[Score]:
        generate_missing = _generator(candidate, tokenizer, config, draw)
        answers = score_with_cache(candidate.content_hash, generation, missing, generate_missing)
        texts = [
            [each.prompt for each in answers],
            [each.output for each in answers],
            [each.reference for each in answers],
        ]
        columns = metric_registry.columns(config, cut, tokenize, *texts)
        if config.reward_model is not None:
            candidate.release()  # make room for the reward model
        if config.has_reward:
            columns["reward"] = reward.reward_scorer(config, tokenizer)(*texts)
        rows = ({kind: column[i] for kind, column in columns.items()} for i in range(len(answers)))
        return [replace(each, metrics=row) for each, row in zip(answers, rows, strict=True)]

    protocol = digest([generation, metric_registry.protocol(config, cut, [tokenize, *reward_ids])])
    return score_with_cache(candidate.content_hash, protocol, items, scorer)


def generation_protocol(
    tokenizer: Manifest, config: EvaluateStepConfig, draw: SamplingConfig | None, how: dict[str, str]
) -> str:
    """Return the id of how answers are generated; `how` is the evaluation setting of the model."""
    decoding = ["drawn", draw.temperature, draw.seed] if draw else ["greedy"]
    return digest([*decoding, GENERATION_VERSION, tokenizer.content_hash(), config.max_new_tokens, how])


def held_out_items(held_out: Dataset, tokenizer: PreTrainedTokenizerBase, max_items: int | None) -> list[Item]:
    """Return one item per held-out example: its prompt, and its last answer as the untruncated reference."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item(HELD_OUT, row["id"], *render.split_prompt(row["messages"], row["tools"], tokenizer)) for row in rows]


def _generator(
    candidate: EvaluatedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateStepConfig,
    draw: SamplingConfig | None,
) -> Callable[[list[Item]], Iterator[Score]]:
    def answer(items: list[Item]) -> Iterator[Score]:
        prompts = [item.prompt for item in items]
        title = f"answers of {candidate.name}" + (f", seed {draw.seed}" if draw else "")
        arguments = (prompts, config.max_new_tokens, config.batch_size, title, draw)
        for answer in generate.stream_answers(candidate.model, tokenizer, *arguments):
            yield score_answer(items[answer.index], answer.text, {}, seconds=answer.seconds)

    return answer


def noise_band(
    candidate: EvaluatedModel, tokenizer_manifest: Manifest, held_out: Dataset, config: EvaluateStepConfig
) -> dict[str, list[float]]:
    """Return the mean of each metric over the held-out rows, one value per sampling seed.

    Empty where the recipe sets no `evaluate.noise`, or where rows are scored by log-likelihood, which is deterministic.
    """
    if config.noise is None or log_likelihood.uses_log_likelihood(held_out):
        return {}
    tokenizer = load_tokenizer(tokenizer_manifest)
    means: dict[str, list[float]] = {}
    for seed in range(config.noise.num_seeds):
        draw = SamplingConfig(config.noise.temperature, seed)
        scores = _score_generated(candidate, tokenizer_manifest, tokenizer, held_out, config, draw)
        for name, table in by_metric(scores).items():
            means.setdefault(name, []).append(sum(table.values()) / len(table))
    return means


def mark_contaminated(scores: list[Score], contamination: Dataset) -> list[Score]:
    """Mark the items that occur in a training example.

    Args:
        scores: Scores of any benchmarks.
        contamination: Rows with the schema `contamination.CONTAMINATION_FEATURES`.
    """
    kinds = {(row["benchmark"], row["item"]): row["kind"] for row in contamination}
    return [replace(each, contamination=kinds.get((each.benchmark, each.item), "")) for each in scores]
