"""Compare runs: parameters that differ, metrics with significance, items won and lost, loss curves as a picture."""

import base64
import io
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from tuneline import statistics
from tuneline.errors import NotFoundError, TrackingError
from tuneline.tracking import registry, text_summary

NOT_COMPARED = (".low", ".high", ".base", ".gain")
LAST_STEP = ("grad_norm", "learning_rate", "loss", "memory_bytes", "tokens_per_second")
"""Histories whose last point says little; the curves and the training's own figures stand for them."""
LEVEL = 0.95
MAX_EXAMPLES = 5
"""Items shown with their answers, of those that gained most, and of those that lost most."""

RUN_ID_PREFIX = re.compile("[0-9a-f]{6,32}")
"""Of a run's id."""

Table = dict[str, dict[str, float]]
"""Metric -> item -> score."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every list has one entry a run, in the order asked for."""

    names: list[str]
    params: dict[str, list[str | None]]
    """Those that differ."""

    metrics: dict[str, list[str]]
    """Means of the models' scores, with their intervals, and the base model's where all runs began with one."""

    figures: dict[str, list[str]]
    """What else the runs noted, of data, training and totals, where it differs."""

    num_equal: int
    """Figures that are equal in all runs, and left out."""

    gains: dict[str, list[str]]
    """Paired difference to the first run with its interval and p-value, where the items are the same; a star where two
    models that answer alike would not differ so much, at 95 % for all stars together (Holm)."""

    wins: dict[str, list[str]]
    """Items won, lost and equal against the first run."""

    examples: list[dict[str, str]]
    """Items that changed most: metric, run, both scores, prompt, and both answers."""

    curves: list[list[tuple[int, float]]]
    """Step and training loss."""

    def to_html(self) -> str:
        """Write one page that needs nothing beside it."""
        picture = base64.b64encode(self.to_png()).decode()
        tables: list[tuple[str, dict[str, Any]]] = [
            ("Parameters that differ", self.params),
            ("Scores", self.metrics),
            ("Gain over the first", self.gains),
            ("Items won, lost, equal against the first", self.wins),
            (f"Other figures that differ ({self.num_equal} are equal)", self.figures),
            ("Training loss, mean over each fifth of the steps", self.losses()),
        ]
        style = (
            "body{font:14px system-ui;margin:2em}"
            "td,th{border:1px solid #ccc;padding:4px 8px}table{border-collapse:collapse}"
        )
        return (
            f"<!doctype html><meta charset=utf-8><title>Comparison</title><style>{style}</style><h1>Comparison</h1>"
            + "".join(_html_table(title, self.names, rows) for title, rows in tables if rows)
            + _html_examples(self.examples)
            + f"<h2>Training loss</h2><img alt='training loss' src='data:image/png;base64,{picture}'>"
        )

    def losses(self) -> dict[str, list[str]]:
        """Return the mean training loss of each fifth of the steps, which a picture would show where one is shown."""
        parts = [text_summary.fifth_means([loss for _, loss in curve]) for curve in self.curves]
        names = ("first fifth", "second", "third", "fourth", "last fifth")
        return {name: [f"{part[i]:.3f}" if part else "" for part in parts] for i, name in enumerate(names)}

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
    """Compare pipeline runs by name, id, the beginning of an id, or a model that they made, like `demo@champion`.

    Raises:
        NotFoundError: There is no such run.
    """
    runs = [find_run(name) for name in names]
    answers = [_answers(run) for run in runs]
    tables = [_by_metric(each) for each in answers]
    params = [run.data.params for run in runs]
    keys = sorted({key for each in params for key in each})
    metrics = sorted({key for run in runs for key in run.data.metrics if not key.endswith(NOT_COMPARED)})
    scored = [key for key in metrics if any(f"{key}.low" in run.data.metrics for run in runs)]
    others = {
        key: [_plain_number(run.data.metrics.get(key)) for run in runs]
        for key in metrics
        if key not in scored and not key.startswith("system/") and key not in LAST_STEP
    }
    different = {key: cells for key, cells in others.items() if len(set(cells)) > 1}
    curves = [[(point.step, point.value) for point in _history(run, "loss")] for run in runs]
    return Comparison(
        names=[str(run.info.run_name) for run in runs],
        params={k: [p.get(k) for p in params] for k in keys if len({p.get(k) for p in params}) > 1},
        metrics={key: [_with_interval(run, key) for run in runs] for key in scored},
        figures=different,
        num_equal=len(others) - len(different),
        gains=_gains(tables),
        wins=_wins(tables),
        examples=_examples(answers, tables, [str(run.info.run_name) for run in runs]),
        curves=curves,
    )


def find_run(name: str) -> Run:
    """Return a finished pipeline run.

    Raises:
        NotFoundError: There is none of that name or id, or no such version of a model.
    """
    model, _, version = name.removeprefix("models:/").replace("/", "@", 1).partition("@")
    if version:
        return get_run(registry.find_version(model, version).run_id)
    queries = [f"attributes.run_name = {registry.quote(name)}"]
    if RUN_ID_PREFIX.fullmatch(name):
        queries.append(f"attributes.run_id LIKE '{name}%'")
    for query in queries:
        if runs := list_pipeline_runs(query, most=1):
            return runs[0]
    raise NotFoundError.among(
        "run", name, [str(run.info.run_name) for run in list_pipeline_runs(most=registry.MAX_LISTED)]
    )


def list_pipeline_runs(query: str = "", most: int = sys.maxsize) -> list[Run]:
    """List the parent runs, newest first.

    Args:
        query: A filter of MLflow's.
        most: How many, from the newest; default: every one.
    """
    conditions = ["tags.`tuneline.kind` = 'pipeline'", *filter(None, [query])]
    listed: list[Run] = mlflow.search_runs(
        filter_string=" and ".join(conditions),
        max_results=most,
        order_by=["attributes.start_time DESC"],
        output_format="list",
        search_all_experiments=True,
    )
    return listed


def _history(run: Run, metric: str) -> list[Any]:
    return sorted(MlflowClient().get_metric_history(run.info.run_id, metric), key=lambda point: point.step)


def _with_interval(run: Run, key: str) -> str:
    values = run.data.metrics
    if key not in values:
        return ""
    ends = [values.get(f"{key}.{end}") for end in ("low", "high")]
    if None in ends:
        return f"{values[key]:.4g}"
    base = f", base {values[f'{key}.base']:.4f}" if f"{key}.base" in values else ""
    return f"{values[key]:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]{base}"


def _plain_number(value: float | None) -> str:
    """Write a figure as people do: whole numbers whole, others to four digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:.4g}"


def _pairs(tables: list[Table], metric: str, place: int) -> list[tuple[float, float]] | None:
    """Return the scores of the first run and of another, item by item; None where the items are others."""
    first, other = tables[0][metric], tables[place].get(metric, {})
    return [(first[item], other[item]) for item in sorted(first)] if set(other) == set(first) else None


def _gains(tables: list[Table]) -> dict[str, list[str]]:
    """Compare item by item with the first run; answers to other items are no pairs."""
    rows: dict[str, list[str]] = {metric: ["(first)"] * len(tables) for metric in tables[0]}
    places, found = list[tuple[str, int]](), list[tuple[statistics.Interval, float]]()
    for metric, cells in rows.items():
        for place in range(1, len(tables)):
            pairs = _pairs(tables, metric, place)
            if pairs is None:
                cells[place] = "other items"
                continue
            differences = [after - before for before, after in pairs]
            places.append((metric, place))
            found.append((statistics.bootstrap_mean(differences, LEVEL), _two_sided_p(pairs)))
    levels = statistics.holm_levels([p for _, p in found], LEVEL)
    still = True
    for i in sorted(range(len(found)), key=lambda i: found[i][1]):
        interval, p = found[i]
        still = still and p < 1 - levels[i]
        metric, place = places[i]
        text = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] p={p:.2g}"
        rows[metric][place] = text + (" *" if still else "")
    return rows


def _two_sided_p(pairs: list[tuple[float, float]]) -> float:
    """Return how likely a difference this large in either direction is, were both models alike."""
    return statistics.SignFlipTest([after - before for before, after in pairs]).two_sided_p()


def _won_and_lost(pairs: list[tuple[float, float]]) -> tuple[int, int]:
    return sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)


def _wins(tables: list[Table]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for metric in tables[0]:
        cells = ["(first)"]
        for place in range(1, len(tables)):
            pairs = _pairs(tables, metric, place)
            won, lost = _won_and_lost(pairs or [])
            cells.append(f"{won} won, {lost} lost, {len(pairs) - won - lost} equal" if pairs else "other items")
        rows[metric] = cells
    return rows


def _examples(answers: list[list[Row]], tables: list[Table], names: list[str]) -> list[dict[str, str]]:
    """Return the items that gained and lost most, with what was asked and answered."""
    first = {row["item"]: row for row in answers[0]}
    shown = []
    for place in range(1, len(tables)):
        theirs = {row["item"]: row for row in answers[place]}
        for metric in tables[0]:
            if _pairs(tables, metric, place) is None:
                continue
            before, after = tables[0][metric], tables[place][metric]
            moved = sorted((after[item] - before[item], item) for item in before)
            most = [*moved[: -MAX_EXAMPLES - 1 : -1], *moved[:MAX_EXAMPLES][::-1]]
            for item in dict.fromkeys(item for change, item in most if change):
                shown.append(
                    {
                        "metric": metric,
                        "run": names[place],
                        "change": "won" if after[item] > before[item] else "lost",
                        "scores": f"{before[item]:.3f} to {after[item]:.3f}",
                        "prompt": first[item]["prompt"],
                        "first": first[item]["output"],
                        "this": theirs[item]["output"],
                    }
                )
    return shown


def _html_examples(examples: list[dict[str, str]]) -> str:
    if not examples:
        return ""
    head = "".join(f"<th>{name}</th>" for name in examples[0])
    body = "".join(
        "<tr>"
        + "".join(f"<td style='white-space:pre-wrap'>{escape(text[-1500:])}</td>" for text in each.values())
        + "</tr>"
        for each in examples
    )
    return f"<h2>Items that changed most</h2><table><tr>{head}</tr>{body}</table>"


def get_run(run_id: str) -> Run:
    """Return the run of that id."""
    return MlflowClient().get_run(run_id)


def load_scores(run: Run, who: str = "model") -> dict[str, dict[str, float]]:
    """Read the per-item scores that a run keeps: metric -> item -> score.

    Args:
        run: A finished pipeline run.
        who: `model` or `base`.

    Raises:
        TrackingError: The run keeps none.
    """
    return _by_metric(_answers(run, who))


def _answers(run: Run, who: str = "model") -> list[Row]:
    """Read what a run's model answered: one row an item."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = MlflowClient().download_artifacts(run.info.run_id, f"evaluation/{who}.parquet", scratch)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"Run {run.info.run_name} keeps no scores: {error}. Was it finished?") from error
        try:
            rows: list[Row] = pq.read_table(Path(path), page_checksum_verification=True).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise TrackingError(
                f"evaluation/{who}.parquet of run {run.info.run_name} is damaged: {error}. Run its recipe again: only "
                "register runs, as the rest is cached."
            ) from error
    return rows


def _by_metric(rows: list[Row]) -> Table:
    table: Table = {}
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
