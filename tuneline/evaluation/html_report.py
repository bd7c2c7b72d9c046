"""HTML page of an evaluation report."""

from tuneline.evaluation.report import Report
from tuneline.html import render

MAX_ANSWERS = 20
"""Items whose answers the page shows, from the first."""


def to_html(report: Report) -> str:
    """Return the page: the metrics, the details, and the first answers of both models side by side."""
    pairs = list(zip(report.base, report.model, strict=True))[:MAX_ANSWERS]
    answers = [
        (base.prompt, base.reference, base.output, model.output)
        for base, model in pairs
        if base.output or model.output or base.reference
    ]
    return render.page("evaluation", title="Evaluation", rows=report.table(), details=report.details(), answers=answers)
