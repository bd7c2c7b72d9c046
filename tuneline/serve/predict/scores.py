"""Scores of predictions with references: the metrics of evaluation, with 95 % intervals."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tuneline import statistics
from tuneline.config import existence
from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.errors import RecipeError
from tuneline.evaluation import environment
from tuneline.evaluation.metrics import corpus_level, metric_registry, text_tokenizer
from tuneline.evaluation.score_store import Score
from tuneline.metric_tables import HELD_OUT
from tuneline.serve.predict.output import Line
from tuneline.statistics import Interval


@dataclass(frozen=True)
class ScoreReport:
    """Scores of a prediction."""

    num_rows: int
    num_scored: int
    """Number of rows with a reference."""

    metrics: dict[str, Interval]
    corpus: dict[str, float]
    """Corpus-level metrics, in their own units."""

    methods: dict[str, str]
    """Metric -> how it is computed."""

    def to_json(self, facts: dict[str, Any]) -> str:
        """Return the content of the scores file."""
        content = {
            **facts,
            "rows": self.num_rows,
            "scored": self.num_scored,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "corpus": self.corpus,
            "methods": self.methods,
            "libraries": environment.versions(environment.METRIC_PACKAGES),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def check_metrics(metrics: Iterable[str]) -> EvaluateStepConfig:
    """Check the metrics before answers are generated; return them as a config of evaluation.

    Raises:
        RecipeError: A metric does not exist.
        SourceError: A package that a metric needs is not installed.
    """
    try:
        config = EvaluateStepConfig(metrics=list(metrics))
    except ValueError as error:
        raise RecipeError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None  # type: ignore[attr-defined]
    for name in config.metrics:
        existence.check_metric(name)
    return config


def score(lines: Iterable[Line], config: EvaluateStepConfig) -> ScoreReport | None:
    """Score the answers that have a reference; None if there are none.

    Args:
        lines: Lines of the output file.
        config: Names the metrics.
    """
    lines = list(lines)
    scored = [line for line in lines if line["reference"] is not None]
    if not scored:
        return None
    outputs, references = ([str(line[name]) for line in scored] for name in ("answer", "reference"))
    prompts = [str(line.get("text") or line["messages"][-1]["content"]) for line in scored]
    cut = text_tokenizer.resolve_cut(config.cut, references)
    tokenize = text_tokenizer.bleu_tokenizer(cut, references)
    columns = metric_registry.columns(config, cut, tokenize, prompts, outputs, references)
    scores = [
        Score(
            HELD_OUT,
            line["row"],
            prompts[i],
            references[i],
            outputs[i],
            {name: each[i] for name, each in columns.items()},
        )
        for i, line in enumerate(scored)
    ]
    intervals = {name: statistics.bootstrap_mean(values) for name, values in columns.items()}
    return ScoreReport(
        len(lines),
        len(scored),
        intervals,
        corpus_level.corpus_scores(scores, config),
        corpus_level.describe_methods(scores, config),
    )
