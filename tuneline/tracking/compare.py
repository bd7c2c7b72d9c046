"""Comparison of runs: different parameters, metrics with significance, items won and lost, and loss curves."""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from tuneline import statistics
from tuneline.errors import NotFoundError, TrackingError
from tuneline.metric_tables import MetricTable, by_metric
from tuneline.tracking import registry, text_summary

NOT_COMPARED = (".low", ".high", ".base", ".gain")
LAST_STEP = ("grad_norm", "learning_rate", "loss", "memory_bytes", "tokens_per_second")
"""Histories whose last value is not shown, because the curves and the training summary cover them."""
LEVEL = 0.95
MAX_EXAMPLES = 5
"""Number of items shown with their answers, of the largest gains and of the largest losses."""

RUN_ID_PREFIX = re.compile("[0-9a-f]{6,32}")
"""Pattern of the first characters of a run id."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every list has one entry per run, in the requested order."""

    names: list[str]
    params: dict[str, list[str | None]]
    """Parameters that differ."""

    metrics: dict[str, list[str]]
    """Mean scores of the models with their intervals, and those of the base model."""

    figures: dict[str, list[str]]
    """Other metrics of data, training and totals that differ."""

    num_equal: int
    """Number of other metrics that are equal in all runs and left out."""

    gains: dict[str, list[str]]
    """Paired difference from the first run with its interval and p-value, if the items are the same; a star marks a
    significant difference at 95 % for all differences together (Holm)."""

    wins: dict[str, list[str]]
    """Items won, lost and equal compared with the first run."""

    examples: list[dict[str, str]]
    """Items with the largest changes: metric, run, both scores, prompt, and both answers."""

    curves: list[list[tuple[int, float]]]
    """Step and training loss."""

    def losses(self) -> dict[str, list[str]]:
        """Return the mean training loss of each fifth of the steps."""
        parts = [text_summary.fifth_means([loss for _, loss in curve]) for curve in self.curves]
        names = ("first fifth", "second", "third", "fourth", "last fifth")
        return {name: [f"{part[i]:.3f}" if part else "" for part in parts] for i, name in enumerate(names)}


def compare(names: list[str]) -> Comparison:
    """Compare pipeline runs, given by name, id, prefix of an id, or a model that they produced, like `demo@champion`.

    Raises:
        NotFoundError: A run does not exist.
    """
    runs = [find_run(name) for name in names]
    answers = [_answers(run) for run in runs]
    tables = [_table(rows) for rows in answers]
    params = [run.data.params for run in runs]
    keys = sorted({key for run_params in params for key in run_params})
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
        NotFoundError: No run has this name or id, or the model version does not exist.
    """
    model, _, version = name.removeprefix("models:/").replace("/", "@", 1).partition("@")
    if version:
        return get_run(registry.find_version(model, version).run_id)
    queries = [f"attributes.run_name = {registry.quote(name)}"]
    if RUN_ID_PREFIX.fullmatch(name):
        queries.append(f"attributes.run_id LIKE '{name}%'")
    for query in queries:
        if runs := list_pipeline_runs(query, max_results=1):
            return runs[0]
    raise NotFoundError.among(
        "run", name, [str(run.info.run_name) for run in list_pipeline_runs(max_results=registry.MAX_LISTED)]
    )


def list_pipeline_runs(query: str = "", max_results: int = sys.maxsize) -> list[Run]:
    """List the pipeline runs, newest first.

    Args:
        query: MLflow filter string.
        max_results: Number of runs; default: all.
    """
    conditions = ["tags.`tuneline.kind` = 'pipeline'", *filter(None, [query])]
    runs: list[Run] = mlflow.search_runs(
        filter_string=" and ".join(conditions),
        max_results=max_results,
        order_by=["attributes.start_time DESC"],
        output_format="list",
        search_all_experiments=True,
    )
    return runs


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
    """Format a number: integers in full, others with four significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:.4g}"


def _pairs(tables: list[MetricTable], metric: str, index: int) -> list[tuple[float, float]] | None:
    """Return the scores of the first run and of another per item; None if the items differ."""
    first, other = tables[0][metric], tables[index].get(metric, {})
    return [(first[item], other[item]) for item in sorted(first)] if set(other) == set(first) else None


def _gains(tables: list[MetricTable]) -> dict[str, list[str]]:
    """Return the paired difference of each run from the first, per metric."""
    rows: dict[str, list[str]] = {metric: ["(first)"] * len(tables) for metric in tables[0]}
    cell_keys, tests = list[tuple[str, int]](), list[tuple[statistics.Interval, float]]()
    for metric, cells in rows.items():
        for index in range(1, len(tables)):
            pairs = _pairs(tables, metric, index)
            if pairs is None:
                cells[index] = "other items"
                continue
            differences = [after - before for before, after in pairs]
            cell_keys.append((metric, index))
            tests.append((statistics.bootstrap_mean(differences, LEVEL), _two_sided_p(pairs)))
    levels = statistics.holm_levels([p for _, p in tests], LEVEL)
    significant = True
    for i in sorted(range(len(tests)), key=lambda i: tests[i][1]):
        interval, p = tests[i]
        significant = significant and p < 1 - levels[i]
        metric, index = cell_keys[i]
        text = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] p={p:.2g}"
        rows[metric][index] = text + (" *" if significant else "")
    return rows


def _two_sided_p(pairs: list[tuple[float, float]]) -> float:
    """Return the two-sided p-value of the hypothesis that both models are equal."""
    return statistics.SignFlipTest([after - before for before, after in pairs]).two_sided_p()


def _won_and_lost(pairs: list[tuple[float, float]]) -> tuple[int, int]:
    return sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)


def _wins(tables: list[MetricTable]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for metric in tables[0]:
        cells = ["(first)"]
        for index in range(1, len(tables)):
            pairs = _pairs(tables, metric, index)
            won, lost = _won_and_lost(pairs or [])
            cells.append(f"{won} won, {lost} lost, {len(pairs) - won - lost} equal" if pairs else "other items")
        rows[metric] = cells
    return rows


def _examples(answers: list[list[Row]], tables: list[MetricTable], names: list[str]) -> list[dict[str, str]]:
    """Return the items with the largest gains and losses, with prompts and answers."""
    first = {row["item"]: row for row in answers[0]}
    examples = []
    for index in range(1, len(tables)):
        others = {row["item"]: row for row in answers[index]}
        for metric in tables[0]:
            if _pairs(tables, metric, index) is None:
                continue
            before, after = tables[0][metric], tables[index][metric]
            changes = sorted((after[item] - before[item], item) for item in before)
            largest = [*changes[: -MAX_EXAMPLES - 1 : -1], *changes[:MAX_EXAMPLES][::-1]]
            for item in dict.fromkeys(item for change, item in largest if change):
                examples.append(
                    {
                        "metric": metric,
                        "run": names[index],
                        "change": "won" if after[item] > before[item] else "lost",
                        "scores": f"{before[item]:.3f} to {after[item]:.3f}",
                        "prompt": first[item]["prompt"],
                        "first": first[item]["output"],
                        "this": others[item]["output"],
                    }
                )
    return examples


def get_run(run_id: str) -> Run:
    """Return the run with an id."""
    return MlflowClient().get_run(run_id)


def load_scores(run: Run, who: str = "model") -> MetricTable:
    """Load the per-item scores stored with a run: metric -> item -> score.

    Args:
        run: A finished pipeline run.
        who: `model` or `base`.

    Raises:
        TrackingError: The run has no scores.
    """
    return _table(_answers(run, who))


def _answers(run: Run, who: str = "model") -> list[Row]:
    """Load the answers of the model of a run, one row per item."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = MlflowClient().download_artifacts(run.info.run_id, f"evaluation/{who}.parquet", scratch)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"Run {run.info.run_name} has no scores: {error}. Check that it is finished."
            ) from error
        try:
            rows: list[Row] = pq.read_table(Path(path), page_checksum_verification=True).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise TrackingError(
                f"evaluation/{who}.parquet of run {run.info.run_name} is damaged: {error}. Run its recipe again: "
                "the step register stores it anew, and the other steps are cached."
            ) from error
    return rows


@dataclass(frozen=True)
class _StoredScore:
    """The scores of one answer, as a run stores them."""

    benchmark: str
    item: str
    metrics: dict[str, float]
    group: str = ""
    contamination: str = ""


def _table(rows: list[Row]) -> MetricTable:
    """Group the scores by metric; categories and clean items get no separate metrics."""
    return by_metric(_StoredScore(row["benchmark"], row["item"], json.loads(row["metrics"])) for row in rows)
