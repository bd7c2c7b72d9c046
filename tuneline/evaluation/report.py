"""The evaluation report: per-item scores of the base model and the new model, with means and intervals."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from math import nan
from statistics import mean, stdev

from tuneline import statistics
from tuneline.evaluation.score_store import Score
from tuneline.statistics import Interval, format_score

HELD_OUT = "held_out"

Scores = dict[str, dict[str, float]]
"""Metric -> item -> score."""


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
        for name, parts in self.metrics().items():
            lines.append(f"| {name} | {parts['model'].num_items} | {' | '.join(format_cells(name, parts))} |")
        for title, rows in self._details():
            if rows:
                lines += ["", f"{title}:", "", *(f"- {name}: {text}" for name, text in rows)]
        return "\n".join(lines) + "\n"

    def _details(self) -> list[tuple[str, list[tuple[str, str]]]]:
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

    def to_html(self) -> str:
        """Write the table and, where answers were given, the first of them side by side."""
        rows = []
        for name, parts in self.metrics().items():
            columns = "".join(f"<td>{each}</td>" for each in format_cells(name, parts))
            rows.append(f"<tr><td>{escape(name)}</td><td>{parts['model'].num_items}</td>{columns}</tr>")
        texts = [
            "<tr>"
            + "".join(f"<td>{escape(text)}</td>" for text in (b.prompt, b.reference, b.output, m.output))
            + "</tr>"
            for b, m in list(zip(self.base, self.model, strict=True))[:20]
            if b.output or m.output or b.reference
        ]
        answers = "<h2>First answers</h2><table><tr><th>prompt<th>reference<th>base<th>model</tr>"
        return (
            "<!doctype html><meta charset=utf-8><title>Evaluation</title><style>body{font:14px system-ui;margin:2em}"
            "td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top;white-space:pre-wrap}"
            "table{border-collapse:collapse;margin-bottom:2em}</style>"
            "<h1>Evaluation</h1><table><tr><th>metric<th>items<th>base<th>model<th>gain</tr>"
            + "".join(rows)
            + "</table>"
            + "".join(_html_list(title, rows) for title, rows in self._details() if rows)
            + (answers + "".join(texts) + "</table>" if texts else "")
        )


def _html_list(title: str, rows: list[tuple[str, str]]) -> str:
    items = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in rows)
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>"


def by_metric(scores: list[Score]) -> Scores:
    """Group scores by metric.

    Metrics of a benchmark start with its name, those of a category also with the category (`mmlu_stem_accuracy`).
    Where some items are contaminated, `<metric>_clean` holds the scores of the other items.
    """
    table: Scores = {}
    contaminated = {score.benchmark for score in scores if score.contamination}
    for score in scores:
        prefix = "" if score.benchmark == HELD_OUT else f"{score.benchmark}_"
        category = score.group.partition("/")[0].lower().replace(" ", "_") if "/" in score.group else ""
        for metric, value in score.metrics.items():
            names = [f"{prefix}{metric}"]
            names += [f"{prefix}{category}_{metric}"] if category else []
            names += [f"{prefix}{metric}_clean"] if score.benchmark in contaminated and not score.contamination else []
            for name in names:
                table.setdefault(name, {})[score.item] = value
    return table


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
