"""The evaluation report: per-item scores of the base model and the new model, with means and intervals."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from statistics import mean, stdev

from tuneline import statistics
from tuneline.evaluation.score_store import Score
from tuneline.metric_tables import HELD_OUT, by_metric
from tuneline.statistics import Interval, format_score


@dataclass(frozen=True)
class Report:
    """Per-item scores of two models on the same items."""

    base: list[Score]
    model: list[Score]
    base_hash: str
    model_hash: str
    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    """`base` and `model` -> corpus-level metrics, like `perplexity` and `corpus_bleu`, in their own units."""

    methods: dict[str, str] = field(default_factory=dict)
    """Metric -> how it is computed: tokenization, signature, protocol."""

    noise: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """`base` and `model` -> metric -> one mean per sampling seed, where the recipe sets `evaluate.noise`."""

    def metrics(self) -> dict[str, dict[str, Interval]]:
        """Return the intervals of `base`, `model` and the paired `gain` for each metric."""
        return self._metrics

    @cached_property
    def _metrics(self) -> dict[str, dict[str, Interval]]:
        before, after = by_metric(self.base), by_metric(self.model)
        intervals = {name: compare(before[name], after[name]) for name in after}
        for exam, strata in _subjects(self.model).items():
            if len(strata) > 1:
                values = before[f"{exam}_accuracy"], after[f"{exam}_accuracy"]
                intervals[f"{exam}_macro_accuracy"] = _compare_macro(*values, list(strata.values()))
        return intervals

    def subjects(self) -> dict[str, tuple[int, float, float]]:
        """Return the number of questions and both accuracies for each subject of each benchmark."""
        before, after = by_metric(self.base), by_metric(self.model)
        subjects = {}
        for exam, strata in _subjects(self.model).items():
            for subject, items in strata.items():
                tables = before[f"{exam}_accuracy"], after[f"{exam}_accuracy"]
                means = [sum(table[item] for item in items) / len(items) for table in tables]
                subjects[f"{exam}/{subject}"] = (len(items), means[0], means[1])
        return subjects

    def to_markdown(self) -> str:
        """Render the metric table, then how each metric is computed."""
        lines = ["| metric | items | base | model | gain |", "|---|---:|---:|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in self.table()]
        for title, rows in self.details():
            if rows:
                lines += ["", f"{title}:", "", *(f"- {name}: {text}" for name, text in rows)]
        return "\n".join(lines) + "\n"

    def table(self) -> list[list[str]]:
        """Return a row per metric: its name, number of items, base model, new model, gain."""
        return [
            [name, str(parts["model"].num_items), *format_cells(name, parts)] for name, parts in self.metrics().items()
        ]

    def details(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the sections below the table: title and rows."""
        before, after = (self.totals.get(role, {}) for role in ("base", "model"))
        totals = [(name, f"base {before.get(name, nan):.4g}, model {value:.4g}") for name, value in after.items()]
        noise = [
            (f"{name} of {who}", format_spread(name, means))
            for who in self.noise
            for name, means in self.noise[who].items()
        ]
        subjects = [
            (name, f"{count} questions, base {100 * one:.1f}, model {100 * other:.1f}")
            for name, (count, one, other) in self.subjects().items()
        ]
        flagged = Counter(score.benchmark for score in self.model if score.contamination)
        contaminated = [(name, f"{count} items occur in the training rows") for name, count in flagged.items()]
        return [
            ("Corpus-level metrics", totals),
            ("Noise band: answers sampled with several seeds", noise),
            ("How metrics are computed", list(self.methods.items())),
            ("Contamination", contaminated),
            ("Subjects", subjects),
        ]


def _subjects(scores: list[Score]) -> dict[str, dict[str, list[str]]]:
    """Return the items of each subject of each benchmark."""
    subjects: dict[str, dict[str, list[str]]] = {}
    for score in scores:
        if score.benchmark != HELD_OUT and score.group and "accuracy" in score.metrics:
            subject = score.group.rpartition("/")[2]
            subjects.setdefault(score.benchmark, {}).setdefault(subject, []).append(score.item)
    return subjects


def compare(before: dict[str, float], after: dict[str, float]) -> dict[str, Interval]:
    """Return the intervals of both means and of the paired difference, over the items of `after`."""
    pairs = [(before[item], after[item]) for item in after]
    return {
        "base": statistics.bootstrap_mean([a for a, _ in pairs]),
        "model": statistics.bootstrap_mean([b for _, b in pairs]),
        "gain": statistics.bootstrap_mean([b - a for a, b in pairs]),
    }


def _compare_macro(before: dict[str, float], after: dict[str, float], strata: list[list[str]]) -> dict[str, Interval]:
    def over(table: dict[str, float]) -> Interval:
        return statistics.bootstrap_macro([[table[item] for item in items] for items in strata])

    gain = {item: after[item] - before[item] for items in strata for item in items}
    return {"base": over(before), "model": over(after), "gain": over(gain)}


def format_spread(metric: str, means: list[float]) -> str:
    """Format means over seeds: mean, standard deviation, minimum and maximum, in the metric's unit."""
    middle, deviation, low, high = (
        format_score(metric, each) for each in (mean(means), stdev(means), min(means), max(means))
    )
    return f"{middle} ± {deviation} [{low}, {high}], {len(means)} seeds"


def format_cells(metric: str, parts: dict[str, Interval]) -> list[str]:
    """Format the intervals of base, model and gain as table cells."""
    return [format_interval(metric, parts[key], signed=key == "gain") for key in ("base", "model", "gain")]


def format_interval(metric: str, interval: Interval, *, signed: bool = False) -> str:
    """Format a mean with its interval, in the metric's unit."""
    middle, low, high = (
        format_score(metric, each, signed=signed) for each in (interval.mean, interval.low, interval.high)
    )
    return f"{middle} [{low}, {high}]"
