"""Compare runs: parameters that differ, metrics side by side with intervals, loss curves as a picture."""

import base64
import io
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from tuneline import statistics
from tuneline.errors import NotFoundError, TrackingError

NOT_COMPARED = (".low", ".high", ".base", ".gain")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every list has one entry a run, in the order asked for."""

    names: list[str]
    params: dict[str, list[str | None]]
    """Those that differ."""

    metrics: dict[str, list[str]]
    """Means, with their intervals where the run has them."""

    gains: dict[str, list[str]]
    """Paired difference of the held-out scores to the first run, where the items are the same."""

    curves: list[list[tuple[int, float]]]
    """Step and training loss."""

    def to_html(self) -> str:
        """Write one page that needs nothing beside it."""
        picture = base64.b64encode(self.to_png()).decode()
        tables: list[tuple[str, dict[str, Any]]] = [
            ("Parameters that differ", self.params),
            ("Metrics", self.metrics),
            ("Gain over the first", self.gains),
        ]
        style = (
            "body{font:14px system-ui;margin:2em}"
            "td,th{border:1px solid #ccc;padding:4px 8px}table{border-collapse:collapse}"
        )
        return (
            f"<!doctype html><meta charset=utf-8><title>Comparison</title><style>{style}</style><h1>Comparison</h1>"
            + "".join(_html_table(title, self.names, rows) for title, rows in tables if rows)
            + f"<h2>Training loss</h2><img alt='training loss' src='data:image/png;base64,{picture}'>"
        )

    def to_png(self) -> bytes:
        """Draw the loss curves."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for name, curve in zip(self.names, self.curves, strict=True):
            axes.plot([step for step, _ in curve], [loss for _, loss in curve], label=name)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("training loss (nats a token)")
        axes.legend(fontsize=8)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        pyplot.close(figure)
        return picture.getvalue()


def compare(names: list[str]) -> Comparison:
    """Compare pipeline runs by name, id or the beginning of an id.

    Raises:
        NotFoundError: There is no such run.
    """
    runs = [find_run(name) for name in names]
    params = [run.data.params for run in runs]
    keys = sorted({key for each in params for key in each})
    metrics = sorted({key for run in runs for key in run.data.metrics if not key.endswith(NOT_COMPARED)})
    curves = [[(point.step, point.value) for point in _history(run, "loss")] for run in runs]
    return Comparison(
        names=[str(run.info.run_name) for run in runs],
        params={k: [p.get(k) for p in params] for k in keys if len({p.get(k) for p in params}) > 1},
        metrics={key: [_with_interval(run, key) for run in runs] for key in metrics if not key.startswith("system/")},
        gains=_gains(runs),
        curves=curves,
    )


def find_run(name: str) -> Run:
    """Return a finished pipeline run.

    Raises:
        NotFoundError: There is none of that name or id.
    """
    known = pipeline_runs()
    for run in known:
        if name == run.info.run_name or (len(name) >= 6 and run.info.run_id.startswith(name)):
            return run
    raise NotFoundError.among("run", name, [str(run.info.run_name) for run in known])


def pipeline_runs() -> list[Run]:
    """List the parent runs, newest first."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`tuneline.kind` = 'pipeline'", max_results=1000)
    return sorted(found, key=lambda run: -run.info.start_time)


def _history(run: Run, metric: str) -> list[Any]:
    return sorted(MlflowClient().get_metric_history(run.info.run_id, metric), key=lambda point: point.step)


def _with_interval(run: Run, key: str) -> str:
    values = run.data.metrics
    if key not in values:
        return ""
    ends = [values.get(f"{key}.{end}") for end in ("low", "high")]
    if None in ends:
        return f"{values[key]:.4g}"
    return f"{values[key]:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"


def _gains(runs: list[Run]) -> dict[str, list[str]]:
    """Compare item by item with the first run; answers to other items are no pairs."""
    tables = [scores(run) for run in runs]
    rows: dict[str, list[str]] = {}
    for metric, first in tables[0].items():
        cells = ["(first)"]
        for table in tables[1:]:
            same = metric in table and set(table[metric]) == set(first)
            cells.append(_gain(first, table[metric]) if same else "other items")
        rows[metric] = cells
    return rows


def _gain(first: dict[str, float], other: dict[str, float]) -> str:
    interval = statistics.bootstrap_mean([other[item] - first[item] for item in first])
    clear = "" if interval.low <= 0 <= interval.high else " *"
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]{clear}"


def run_of(run_id: str) -> Run:
    """Return the run of that id."""
    return MlflowClient().get_run(run_id)


def scores(run: Run, who: str = "model") -> dict[str, dict[str, float]]:
    """Read the per-item scores that a run keeps: metric -> item -> score.

    Args:
        run: A finished pipeline run.
        who: `model` or `base`.

    Raises:
        TrackingError: The run keeps none.
    """
    import json

    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = MlflowClient().download_artifacts(run.info.run_id, f"evaluation/{who}.parquet", scratch)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"Run {run.info.run_name} keeps no scores: {error}. Was it finished?") from error
        rows = pq.read_table(Path(path)).to_pylist()
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        for metric, value in json.loads(row["metrics"]).items():
            name = metric if row["benchmark"] == "held_out" else f"{row['benchmark']}_{metric}"
            table.setdefault(name, {})[row["item"]] = value
    return table


def _html_table(title: str, names: list[str], rows: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{escape(key)}</th>" + "".join(f"<td>{escape(str(value))}</td>" for value in values) + "</tr>"
        for key, values in rows.items()
    )
    return f"<h2>{title}</h2><table><tr><th></th>{head}</tr>{body}</table>"
