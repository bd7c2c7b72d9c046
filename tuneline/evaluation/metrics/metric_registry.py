"""Metrics of generated answers, by their names in `evaluate.metrics`."""

from collections.abc import Callable

from tuneline.config.sections.evaluate import METRICS_KEY, EvaluateStepConfig, column_name
from tuneline.data import reward_function
from tuneline.evaluation import environment
from tuneline.evaluation.metrics import llamafactory, overlap, rouge, text_tokenizer
from tuneline.evaluation.metrics.base import Columns
from tuneline.identity import digest

VERSION = 1

Scorer = Callable[[list[str], list[str]], Columns]
"""(predictions, references) -> per-item scores by metric."""


def protocol(config: EvaluateStepConfig, cut: text_tokenizer.Cut, extra: list[str]) -> str:
    """Return the id of how answers are scored. A different id scores cached answers again without generating them."""
    libraries = environment.versions(environment.METRIC_PACKAGES)
    options = [config.metrics, config.use_stemmer, cut, sorted(config.metric_hashes.items())]
    return digest(["answers", VERSION, libraries, *options, *extra])


def columns(
    config: EvaluateStepConfig,
    cut: text_tokenizer.Cut,
    tokenize: str,
    prompts: list[str],
    outputs: list[str],
    references: list[str],
) -> Columns:
    """Return the scores of each answer, by metric.

    Args:
        config: Names the metrics.
        cut: How texts are split into tokens.
        tokenize: sacrebleu's tokenizer for BLEU.
        prompts: Prompts, for user functions.
        outputs: Answers; an empty answer scores 0.
        references: References.

    Raises:
        RecipeError: A user function is missing, fails, or does not return numbers.
    """
    scores: Columns = {}
    kinds = [name for name in config.metrics if name in (*rouge.KINDS, rouge.SUMMARY)]
    if kinds:
        metric = rouge.Rouge(keep_in_memory=True)
        options = {"kinds": kinds, "cut": cut, "use_stemmer": config.use_stemmer}
        scores |= metric.compute(predictions=outputs, references=references, aggregate=False, **options)
    built_in = _built_in(cut, tokenize)
    for name in config.metrics:
        if ":" in name:
            function = reward_function.load_reward_function(name, METRICS_KEY, config.metric_hashes.get(name, ""))
            scores[column_name(name)] = function(prompts, outputs, references)
        elif name not in kinds:
            scores |= built_in[name](outputs, references)
    return scores


def _built_in(cut: text_tokenizer.Cut, tokenize: str) -> dict[str, Scorer]:
    def scorer(kind: type, **options: str) -> Scorer:
        return lambda outputs, references: kind(keep_in_memory=True).compute(
            predictions=outputs, references=references, aggregate=False, **options
        )

    return {
        "bleu": scorer(overlap.Bleu, tokenize=tokenize),
        "chrf": scorer(overlap.ChrF),
        "exact_match": scorer(overlap.ExactMatch),
        "token_f1": scorer(overlap.TokenF1, cut=cut),
        "llamafactory_compat": scorer(llamafactory.LlamaFactoryCompat),
    }
