"""HTML pages of a gate decision and of a comparison of runs."""

import base64
import io

from tuneline.html import render
from tuneline.tracking.compare import Comparison
from tuneline.tracking.decision import COLUMNS, NOTE, Decision

MAX_CELL_CHARACTERS = 1500
"""Characters of a prompt or an answer that the page shows, from its end."""


def decision_page(decision: Decision) -> str:
    """Return the page of a gate decision."""
    rows = [(finding, cells.values()) for finding, cells in zip(decision.findings, decision.table(), strict=True)]
    return render.page("decision", title=decision.title(), decision=decision, columns=COLUMNS, rows=rows, note=NOTE)


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison: its tables, the items that changed most, and the loss curves."""
    tables = [
        ("Parameters that differ", comparison.params),
        ("Scores", comparison.metrics),
        ("Gain over the first run", comparison.gains),
        ("Items won, lost, equal compared with the first run", comparison.wins),
        (f"Other values that differ ({comparison.num_equal} are equal)", comparison.figures),
        ("Training loss, mean over each fifth of the steps", comparison.losses()),
    ]
    return render.page(
        "comparison",
        title="Comparison",
        names=comparison.names,
        tables=tables,
        examples=comparison.examples,
        example_rows=[[text[-MAX_CELL_CHARACTERS:] for text in item.values()] for item in comparison.examples],
        picture=base64.b64encode(loss_png(comparison)).decode(),
    )


def loss_png(comparison: Comparison) -> bytes:
    """Draw the loss curves of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in zip(comparison.names, comparison.curves, strict=True):
        axes.plot([step for step, _ in curve], [loss for _, loss in curve], label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    return picture.getvalue()
