"""Results of a sweep: the score of each setting over its seeds, and the statistically significant differences.

The score of a setting is the mean over its seeds. Two settings differ if Welch's t test of their seeds is significant
(Welch 1947), at a level of 5 % for all settings together by Holm's method (Holm 1979). A test needs two seeds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from math import isnan, nan, sqrt
from statistics import fmean, stdev

import mlflow
from mlflow import MlflowClient

from tuneline import owner
from tuneline.html import render
from tuneline.statistics import holm_levels
from tuneline.tracking.runs import MLFLOW_RUNS, owner_note

LEVEL = 0.05


@dataclass(frozen=True)
class SettingResult:
    """The result of one setting."""

    name: str
    runs: list[str]
    """Names of the pipeline runs."""

    scores: list[float]
    """One score per seed."""

    differs: str = ""
    """Comparison with the best setting, in words."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.scores)

    @property
    def band(self) -> float:
        """Half the width of the 95 % confidence interval of the mean; NaN with one seed."""
        if len(self.scores) < 2:
            return nan
        from scipy.stats import t

        return float(t.ppf(0.975, len(self.scores) - 1)) * stdev(self.scores) / sqrt(len(self.scores))


def rank(lines: list[SettingResult], direction: str = "maximize") -> list[SettingResult]:
    """Return the settings from best to worst, each compared with the best."""
    ranked = sorted(lines, key=lambda line: line.mean, reverse=direction == "maximize")
    best, others = ranked[0], ranked[1:]
    if any(len(line.scores) < 2 for line in ranked):
        texts = ["best" if line is best else "unknown: one seed has no variance" for line in ranked]
        return [
            SettingResult(line.name, line.runs, line.scores, text) for line, text in zip(ranked, texts, strict=True)
        ]
    p_values = [_p_value(best.scores, line.scores) for line in others]
    rejected = _holm_rejections(p_values)
    results = [SettingResult(best.name, best.runs, best.scores, "best")]
    for i, (line, p) in enumerate(zip(others, p_values, strict=True)):
        text = f"{'significantly worse' if i in rejected else 'not significantly different'} (p {p:.2g})"
        results.append(SettingResult(line.name, line.runs, line.scores, text))
    return results


def _p_value(first: list[float], second: list[float]) -> float:
    """Return the p-value of Welch's test; scores without variance differ if they are not equal."""
    from scipy.stats import ttest_ind

    if stdev(first) == stdev(second) == 0:
        return 1.0 if fmean(first) == fmean(second) else 0.0
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def _holm_rejections(p_values: list[float]) -> set[int]:
    """Return the rejected hypotheses, at a level for all of them together."""
    confidences = holm_levels(p_values, 1 - LEVEL)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    return set(takewhile(lambda i: p_values[i] <= 1 - confidences[i], order))


def to_html(title: str, metric: str, lines: list[SettingResult]) -> str:
    """Return the page of a sweep."""
    return render.page("sweep", title=title, metric=metric, rows=table_rows(lines))


def table_rows(lines: list[SettingResult]) -> list[tuple[str, ...]]:
    """Return a row per setting: its name, mean, noise band, number of seeds, comparison with the best."""
    return [(line.name, f"{line.mean:.4f}", format_band(line), str(len(line.scores)), line.differs) for line in lines]


def format_band(line: SettingResult) -> str:
    """Return the confidence band as text."""
    return "-" if isnan(line.band) else f"±{line.band:.4f}"


class ParentRun:
    """The MLflow parent run of a sweep or a search."""

    def __init__(self, run_id: str, kind: str) -> None:
        self.run_id, self.kind = run_id, kind

    def add_child(self, run_id: str) -> None:
        """Make the run of a pipeline a child run."""
        MlflowClient().set_tag(run_id, "mlflow.parentRunId", self.run_id)

    def close(self, title: str, metric: str, lines: list[SettingResult]) -> None:
        """Log the table and the score of each setting."""
        client = MlflowClient()
        client.log_text(self.run_id, to_html(title, metric, lines), "sweep.html")
        for number, line in enumerate(lines, start=1):
            client.log_metric(self.run_id, f"sweep.{metric}", line.mean, step=number)
        client.set_tag(self.run_id, "tuneline.best", lines[0].name)


@contextmanager
def open_parent_run(
    title: str, experiment: str, *, kind: str = "sweep", run_id: str | None = None
) -> Iterator[ParentRun]:
    """Open or resume the parent run of a sweep; it is marked as failed if the block raises."""
    client = MlflowClient()
    experiment_id = mlflow.set_experiment(experiment).experiment_id  # two concurrent sweeps: one creates it
    if run_id is None:
        run_id = client.create_run(experiment_id, run_name=title, tags={"tuneline.kind": kind}).info.run_id
    else:
        client.update_run(run_id, status="RUNNING")
    try:
        with owner.current_owner().registered(MLFLOW_RUNS, owner_note(run_id)):
            yield ParentRun(run_id, kind)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
