"""Metrics of generated answers, by the names that a recipe gives in `evaluate.metrics`."""

from collections.abc import Callable

from tuneline.config.sections.evaluate import METRICS_KEY, EvaluateStepConfig, column_name
from tuneline.data import reward_function
from tuneline.evaluation import setting
from tuneline.evaluation.metrics import llamafactory, overlap, rouge, text_tokenizer
from tuneline.evaluation.metrics.base import Columns
from tuneline.identity import digest

VERSION = 1

Scorer = Callable[[list[str], list[str]], Columns]
"""(predictions, references) -> the score of each item, by column."""


def protocol(config: EvaluateStepConfig, cut: text_tokenizer.Cut, judged: list[str]) -> str:
    """Name how answers are scored; another way scores them again, and asks no model again."""
    libraries = setting.versions(setting.METRIC_PACKAGES)
    asked = [config.metrics, config.use_stemmer, cut, sorted(config.metric_hashes.items())]
    return digest(["answers", VERSION, libraries, *asked, *judged])


def columns(
    config: EvaluateStepConfig,
    cut: text_tokenizer.Cut,
    tokenize: str,
    prompts: list[str],
    outputs: list[str],
    wanted: list[str],
) -> Columns:
    """Return the scores of each answer, by metric.

    Args:
        config: Names the metrics.
        cut: How texts are cut into tokens.
        tokenize: The tokenizer of BLEU.
        prompts: What was asked, for functions of the user's own.
        outputs: The answers; an empty one scores 0.
        wanted: The references.

    Raises:
        RecipeError: A function of the user's own is missing, fails, or returns something else than numbers.
    """
    found: Columns = {}
    kinds = [name for name in config.metrics if name in (*rouge.KINDS, rouge.SUMMARY)]
    if kinds:
        metric = rouge.Rouge(keep_in_memory=True)
        told = {"kinds": kinds, "cut": cut, "use_stemmer": config.use_stemmer}
        found |= metric.compute(predictions=outputs, references=wanted, aggregate=False, **told)
    built_in = _built_in(cut, tokenize)
    for name in config.metrics:
        if ":" in name:
            function = reward_function.load_reward_function(name, METRICS_KEY, config.metric_hashes.get(name, ""))
            found[column_name(name)] = function(prompts, outputs, wanted)
        elif name not in kinds:
            found |= built_in[name](outputs, wanted)
    return found


def _built_in(cut: text_tokenizer.Cut, tokenize: str) -> dict[str, Scorer]:
    def of(kind: type, **told: str) -> Scorer:
        return lambda outputs, wanted: kind(keep_in_memory=True).compute(
            predictions=outputs, references=wanted, aggregate=False, **told
        )

    return {
        "bleu": of(overlap.Bleu, tokenize=tokenize),
        "chrf": of(overlap.ChrF),
        "exact_match": of(overlap.ExactMatch),
        "token_f1": of(overlap.TokenF1, cut=cut),
        "llamafactory_compat": of(llamafactory.LlamaFactoryCompat),
    }
