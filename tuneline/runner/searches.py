"""Run a search: trial after trial as pipeline runs, then the best with fresh seeds against the recipe's own values.

The best of many trials is partly the luckiest of them, so its own score is no measure of it; the re-runs are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient

from tuneline.config.experiments.search import Search
from tuneline.config.experiments.sweep import describe_values
from tuneline.errors import RecipeError, SourceError, VerificationError
from tuneline.runner import sweeps
from tuneline.runner.start import Outcome
from tuneline.tracking.experiments import optuna_study, sweep
from tuneline.tracking.experiments.optuna_study import Study, Trial
from tuneline.tracking.experiments.sweep import ParentRun, SettingResult
from tuneline.zenml_integration import tracker
from tuneline.zenml_integration.strict_pipeline import RunError

OnRun = Callable[[str, Outcome | None], None]
"""Hears what one run was, and what it came to; None where it failed."""

FAILURES = (RecipeError, SourceError, VerificationError)
"""What values can be at fault for; anything else ends the search, which goes on when it is started again."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    trials: list[Trial]
    best: Trial
    lines: list[SettingResult]
    """The best and the recipe's own values with fresh seeds, the better first."""

    verdict: str
    run_id: str
    """Its MLflow run."""


def run(title: str, asked: Search, num_seeds: int, told: OnRun = lambda name, outcome: None) -> SearchResult:
    """Run what is left of a search's trials, then confirm the best.

    Args:
        title: Of the search's own run.
        asked: What is searched.
        num_seeds: Runs of the best, and of the recipe's own values, with seeds that no trial had.
        told: Called after each run.

    Raises:
        Refusal: A run met something that its values are not at fault for; trials before it stay.
        TrackingError: No trial has a score, or another process runs this search.
    """
    tracker.connect()
    with (
        optuna_study.exclusive_study(asked) as study,
        sweep.open_parent_run(title, asked.base.pipeline, kind="search", run_id=study.parent_run) as parent,
    ):
        study.parent_run = parent.run_id
        while len(study.trials()) < asked.trials:
            _try(study, asked, parent, told)
        best = study.best()
        lines = [_confirm(values, asked, num_seeds, parent, told) for values in (best.values, {})]
        trials = study.trials()
        _close(title, asked, parent, trials, best, lines)
    ranked = sweep.rank(lines, asked.direction)
    return SearchResult(trials, best, ranked, optuna_study.describe_confirmation(asked, *lines), parent.run_id)


def _try(study: Study, asked: Search, parent: ParentRun, told: OnRun) -> None:
    trial, values = study.draw()
    name = f"trial {len(study.trials()) + 1} of {asked.trials}: {describe_values(values)}"
    try:
        outcome, score = sweeps.run_child(parent, asked.run(values), asked.objective)
    except (RunError, *FAILURES) as error:
        if isinstance(error, RunError) and not isinstance(error.__cause__, FAILURES):
            raise
        study.fail(trial, " ".join(str(error).split()))
        told(f"{name}: failed: {error}", None)
        return
    study.tell(trial, score, outcome.run_name)
    told(f"{name}: {asked.objective} {score:.4f}", outcome)


def _confirm(values: dict[str, Any], asked: Search, num_seeds: int, parent: ParentRun, told: OnRun) -> SettingResult:
    """Run some values with seeds behind the recipe's own, which the trials had."""
    first = asked.base.training.train.seed + 1
    name = f"best: {describe_values(values)}" if values else describe_values(values)
    scores, names = [], []
    for seed in range(first, first + num_seeds):
        outcome, score = sweeps.run_child(parent, asked.run(values, seed), asked.objective)
        told(f"{name}, seed {seed}: {asked.objective} {score:.4f}", outcome)
        scores.append(score)
        names.append(outcome.run_name)
    return SettingResult(name, names, scores)


def _close(
    title: str, asked: Search, parent: ParentRun, trials: list[Trial], best: Trial, lines: list[SettingResult]
) -> None:
    """Log the tables, and each trial's score."""
    client = MlflowClient()
    client.log_text(parent.run_id, optuna_study.to_html(title, asked, trials, best, lines), "search.html")
    for each in trials:
        if each.score is not None:
            client.log_metric(parent.run_id, f"search.{asked.objective}", each.score, step=each.number)
    client.set_tag(parent.run_id, "tuneline.best", best.name)
