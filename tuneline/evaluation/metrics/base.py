"""What metrics of generated texts have in common: an `evaluate.Metric` that is instantiated, never fetched by name."""

from typing import Any

import datasets
import evaluate

Columns = dict[str, list[float]]
"""Name -> the score of each item, 0 to 1."""


class TextMetric(evaluate.Metric):
    """The mean over texts; with `aggregate=False`, the score of each item. Subclasses say `_info` and `_columns`."""

    def _compute(
        self, predictions: list[str], references: list[str], aggregate: bool = True, **options: Any
    ) -> dict[str, float] | Columns:
        columns = self._columns(predictions, references, **options)
        return {name: sum(each) / len(each) for name, each in columns.items()} if aggregate else columns

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        raise NotImplementedError


def metric_info(description: str, citation: str) -> evaluate.MetricInfo:
    """Describe a metric of two lists of texts."""
    features = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
    told = "predictions and references: lists of texts"
    return evaluate.MetricInfo(description=description, citation=citation, inputs_description=told, features=features)
