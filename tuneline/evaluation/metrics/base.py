"""Base class of metrics of generated text: an `evaluate.Metric` that is instantiated, not loaded by name."""

from typing import Any

import datasets
import evaluate

Columns = dict[str, list[float]]
"""Metric name -> score of each item, 0 to 1."""


class TextMetric(evaluate.Metric):
    """Mean over texts; per-item scores with `aggregate=False`. Subclasses implement `_info` and `_columns`."""

    def _compute(
        self, predictions: list[str], references: list[str], aggregate: bool = True, **options: Any
    ) -> dict[str, float] | Columns:
        columns = self._columns(predictions, references, **options)
        return {name: sum(each) / len(each) for name, each in columns.items()} if aggregate else columns

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        raise NotImplementedError


def metric_info(description: str, citation: str) -> evaluate.MetricInfo:
    """Return the description of a metric that compares two lists of texts."""
    features = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
    inputs = "predictions and references: lists of texts"
    return evaluate.MetricInfo(description=description, citation=citation, inputs_description=inputs, features=features)
