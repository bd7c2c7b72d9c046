"""HTML page of a training: loss curves, figures, settings and sample generations."""

import json
from collections.abc import Mapping
from typing import Any

from tuneline.html import render
from tuneline.html.charts import LineChart, line_chart
from tuneline.train.report import TrainingReport

CURVES = (
    ("Loss", "loss", ("loss", "validation_loss")),
    ("Learning rate", "learning rate", ("learning_rate",)),
    ("Gradient norm", "gradient norm", ("grad_norm",)),
)
"""Heading, label of the vertical axis, keys of the history."""


def to_html(report: TrainingReport) -> str:
    """Return the page of a training report."""
    return render.page(
        "training",
        title="Training",
        charts=_charts(report.history),
        tables=[
            ("Summary", [(name, f"{value:,.6g}") for name, value in report.summary.items()]),
            ("Automatic choices", list(report.decisions.items())),
            ("Training arguments", _rows(report.train)),
            ("Method", _rows(report.method)),
            ("Model loading", _rows(report.load)),
            ("Environment", list(report.environment.items())),
        ],
        samples=[(sample["step"], sample["prompt"], sample["answer"]) for sample in report.samples],
    )


def _charts(history: list[dict[str, float]]) -> list[tuple[str, LineChart]]:
    charts = []
    for heading, label, keys in CURVES:
        series = {key: [(entry["step"], entry[key]) for entry in history if key in entry] for key in keys}
        chart = line_chart({key: points for key, points in series.items() if points}, "optimizer step", label)
        charts += [(heading, chart)] if chart else []
    return charts


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
