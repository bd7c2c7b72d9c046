"""The report of an evaluation: scores of the base model and of the new one, item by item, and what they add up to."""

from dataclasses import dataclass
from html import escape

from tuneline import statistics
from tuneline.evaluation.items import Score
from tuneline.statistics import Interval

Scores = dict[str, dict[str, float]]
"""Metric -> item -> score."""


@dataclass(frozen=True)
class Report:
    """Per-item scores of two models on the same items."""

    base: list[Score]
    model: list[Score]
    base_hash: str
    model_hash: str

    def metrics(self) -> dict[str, dict[str, Interval]]:
        """Return, for each metric, the intervals of `base`, `model` and their paired `gain`."""
        before, after = by_metric(self.base), by_metric(self.model)
        return {name: compare(before[name], after[name]) for name in after}

    def to_markdown(self) -> str:
        """Write the table that people read first."""
        lines = ["| metric | items | base | model | gain |", "|---|---:|---:|---:|---:|"]
        for name, parts in self.metrics().items():
            cells = " | ".join(show(parts[key], signed=key == "gain") for key in ("base", "model", "gain"))
            lines.append(f"| {name} | {parts['model'].num_items} | {cells} |")
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """Write the table and the first answers side by side."""
        rows = []
        for name, parts in self.metrics().items():
            cells = "".join(f"<td>{show(parts[key], signed=key == 'gain')}</td>" for key in ("base", "model", "gain"))
            rows.append(f"<tr><td>{escape(name)}</td><td>{parts['model'].num_items}</td>{cells}</tr>")
        texts = [
            "<tr>"
            + "".join(f"<td>{escape(text)}</td>" for text in (b.prompt, b.reference, b.output, m.output))
            + "</tr>"
            for b, m in list(zip(self.base, self.model, strict=True))[:20]
        ]
        return (
            "<!doctype html><meta charset=utf-8><title>Evaluation</title><style>body{font:14px system-ui;margin:2em}"
            "td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top;white-space:pre-wrap}"
            "table{border-collapse:collapse;margin-bottom:2em}</style>"
            "<h1>Evaluation</h1><table><tr><th>metric<th>items<th>base<th>model<th>gain</tr>"
            + "".join(rows)
            + "</table><h2>First answers</h2><table><tr><th>prompt<th>reference<th>base<th>model</tr>"
            + "".join(texts)
            + "</table>"
        )


def by_metric(scores: list[Score]) -> Scores:
    """Sort scores by metric; the metrics of exams carry the exam's name."""
    table: Scores = {}
    for score in scores:
        for metric, value in score.metrics.items():
            name = metric if score.benchmark == "held_out" else f"{score.benchmark}_{metric}"
            table.setdefault(name, {})[score.item] = value
    return table


def compare(before: dict[str, float], after: dict[str, float]) -> dict[str, Interval]:
    """Return the intervals of both and of the paired difference, on the items of `after`."""
    pairs = [(before[item], after[item]) for item in after]
    return {
        "base": statistics.bootstrap_mean([a for a, _ in pairs]),
        "model": statistics.bootstrap_mean([b for _, b in pairs]),
        "gain": statistics.bootstrap_mean([b - a for a, b in pairs]),
    }


def show(interval: Interval, *, signed: bool = False) -> str:
    """Write a mean with its interval, in points of a hundred."""
    sign = "+" if signed else ""
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
