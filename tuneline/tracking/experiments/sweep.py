"""What a sweep came to: each setting's score over its seeds, and which differences are more than the seeds' noise.

A setting is the mean of its seeds' scores. Two settings differ where Welch's t test of their seeds does (Welch 1947),
held to a level of 5 % together with all others by Holm's steps (Holm 1979). With one seed there is no noise to tell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import takewhile
from math import isnan, nan, sqrt
from statistics import fmean, stdev

import mlflow
from mlflow import MlflowClient

from tuneline import owner
from tuneline.statistics import holm_levels
from tuneline.tracking.runs import MLFLOW_RUNS, owner_note

LEVEL = 0.05


@dataclass(frozen=True)
class SettingResult:
    """One setting."""

    name: str
    runs: list[str]
    """Names of its pipeline runs."""

    scores: list[float]
    """A score a seed."""

    differs: str = ""
    """In words: is it another one than the best?"""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.scores)

    @property
    def band(self) -> float:
        """Half the width of the 95 % interval of the mean over seeds; NaN with one seed."""
        if len(self.scores) < 2:
            return nan
        from scipy.stats import t

        return float(t.ppf(0.975, len(self.scores) - 1)) * stdev(self.scores) / sqrt(len(self.scores))


def rank(lines: list[SettingResult], direction: str = "maximize") -> list[SettingResult]:
    """Return the settings from the best to the worst, and say of each whether it is really worse than the best."""
    ranked = sorted(lines, key=lambda line: line.mean, reverse=direction == "maximize")
    best, others = ranked[0], ranked[1:]
    if any(len(line.scores) < 2 for line in ranked):
        said = ["best" if line is best else "unknown: one seed tells no noise" for line in ranked]
        return [SettingResult(line.name, line.runs, line.scores, text) for line, text in zip(ranked, said, strict=True)]
    chances = [_chance(best.scores, line.scores) for line in others]
    fallen = _fallen(chances)
    made = [SettingResult(best.name, best.runs, best.scores, "best")]
    for i, (line, chance) in enumerate(zip(others, chances, strict=True)):
        text = f"{'really worse' if i in fallen else 'within the noise of the seeds'} (p {chance:.2g})"
        made.append(SettingResult(line.name, line.runs, line.scores, text))
    return made


def _chance(one: list[float], other: list[float]) -> float:
    """Return the p value of Welch's test; scores without any spread differ where they are not equal."""
    from scipy.stats import ttest_ind

    if stdev(one) == stdev(other) == 0:
        return 1.0 if fmean(one) == fmean(other) else 0.0
    return float(ttest_ind(one, other, equal_var=False).pvalue)


def _fallen(chances: list[float]) -> set[int]:
    """Return the hypotheses that fall, at a level that holds for all of them together."""
    confidences = holm_levels(chances, 1 - LEVEL)
    order = sorted(range(len(chances)), key=chances.__getitem__)
    return set(takewhile(lambda i: chances[i] <= 1 - confidences[i], order))


def to_html(title: str, metric: str, lines: list[SettingResult]) -> str:
    """Write the table as a page that needs nothing beside it."""
    rows = "".join(
        f"<tr><td>{escape(line.name)}<td>{line.mean:.4f}<td>{format_band(line)}<td>{len(line.scores)}"
        f"<td>{escape(line.differs)}</tr>"
        for line in lines
    )
    style = "body{font:14px system-ui;margin:2em}td,th{border:1px solid #ccc;padding:4px 8px}"
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{style}"
        f"table{{border-collapse:collapse}}</style><h1>{escape(title)}</h1>"
        f"<table><tr><th>setting<th>{escape(metric)}<th>noise band<th>seeds<th>against the best</tr>{rows}</table>"
    )


def format_band(line: SettingResult) -> str:
    """Return the noise band in words."""
    return "-" if isnan(line.band) else f"±{line.band:.4f}"


class ParentRun:
    """The MLflow run above all runs of a sweep or a search."""

    def __init__(self, run_id: str, kind: str) -> None:
        self.run_id, self.kind = run_id, kind

    def add_child(self, run_id: str) -> None:
        """Make a pipeline's run a child."""
        MlflowClient().set_tag(run_id, "mlflow.parentRunId", self.run_id)

    def close(self, title: str, metric: str, lines: list[SettingResult]) -> None:
        """Log the table, and each setting's score."""
        client = MlflowClient()
        client.log_text(self.run_id, to_html(title, metric, lines), "sweep.html")
        for number, line in enumerate(lines, start=1):
            client.log_metric(self.run_id, f"sweep.{metric}", line.mean, step=number)
        client.set_tag(self.run_id, "tuneline.best", lines[0].name)


@contextmanager
def open_parent_run(
    title: str, experiment: str, *, kind: str = "sweep", run_id: str | None = None
) -> Iterator[ParentRun]:
    """Open a run for a sweep, or go on with one; it fails where the block does."""
    client = MlflowClient()
    experiment_id = mlflow.set_experiment(experiment).experiment_id  # of two first sweeps one makes it
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
