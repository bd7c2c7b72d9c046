"""Per-item scores grouped by metric: the tables that reports, gates and comparisons of runs read."""

from collections.abc import Iterable, Mapping
from typing import Protocol

HELD_OUT = "held_out"
"""Benchmark of the held-out examples."""

MetricTable = dict[str, dict[str, float]]
"""Metric -> item -> score."""


class ItemScore(Protocol):
    """The scores of one answer."""

    @property
    def benchmark(self) -> str:
        """`held_out`, or the name of an exam."""

    @property
    def item(self) -> str:
        """Id of the item."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metric -> score."""

    @property
    def group(self) -> str:
        """Subject, after its category if it has one: `STEM/anatomy`."""

    @property
    def contamination(self) -> str:
        """How a training example contains the item; empty if none does."""


def metric_name(benchmark: str, metric: str) -> str:
    """Return the name of a metric in reports: that of an exam starts with the exam's name."""
    return metric if benchmark == HELD_OUT else f"{benchmark}_{metric}"


def by_metric(scores: Iterable[ItemScore]) -> MetricTable:
    """Group scores by metric.

    An exam's metrics carry its name (`mmlu_accuracy`). A category adds `mmlu_stem_accuracy`. If training examples
    contain some of the items, `mmlu_accuracy_clean` has the scores of the others.
    """
    scores = list(scores)
    table: MetricTable = {}
    contaminated = {score.benchmark for score in scores if score.contamination}
    for score in scores:
        category = score.group.partition("/")[0].lower().replace(" ", "_") if "/" in score.group else ""
        for metric, value in score.metrics.items():
            names = [metric_name(score.benchmark, metric)]
            if category:
                names.append(metric_name(score.benchmark, f"{category}_{metric}"))
            if score.benchmark in contaminated and not score.contamination:
                names.append(metric_name(score.benchmark, f"{metric}_clean"))
            for name in names:
                table.setdefault(name, {})[score.item] = value
    return table
