"""Runs a search: one pipeline run per trial, then the best values and the recipe's own values with new seeds.

The score of the best of many trials is biased upwards, so that only the new runs measure its gain.
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
"""Called with the description of a run and its results; None if it failed."""

FAILURES = (RecipeError, SourceError, VerificationError)
"""Errors that the values of a trial can cause; any other error ends the search, which can be resumed."""


@dataclass(frozen=True)
class SearchResult:
    """Results of a search."""

    trials: list[Trial]
    best: Trial
    lines: list[SettingResult]
    """The best values and the recipe's own values with new seeds, the better first."""

    verdict: str
    run_id: str
    """MLflow run of the search."""


def run(title: str, plan: Search, num_seeds: int, on_run: OnRun = lambda name, outcome: None) -> SearchResult:
    """Run the remaining trials of a search, then confirm the best.

    Args:
        title: Name of the MLflow run of the search.
        plan: The search.
        num_seeds: Number of runs of the best values and of the recipe's own values, with seeds that no trial used.
        on_run: Called after each run.

    Raises:
        RunError: A run failed for a reason other than its values; earlier trials are kept.
        TrackingError: No trial has a score, or another process runs this search.
    """
    tracker.connect()
    with (
        optuna_study.exclusive_study(plan) as study,
        sweep.open_parent_run(title, plan.base.pipeline, kind="search", run_id=study.parent_run) as parent,
    ):
        study.parent_run = parent.run_id
        while len(study.trials()) < plan.trials:
            _run_trial(study, plan, parent, on_run)
        best = study.best()
        lines = [_confirm(values, plan, num_seeds, parent, on_run) for values in (best.values, {})]
        trials = study.trials()
        _log_results(title, plan, parent, trials, best, lines)
    ranked = sweep.rank(lines, plan.direction)
    return SearchResult(trials, best, ranked, optuna_study.describe_confirmation(plan, *lines), parent.run_id)


def _run_trial(study: Study, plan: Search, parent: ParentRun, on_run: OnRun) -> None:
    trial, values = study.draw()
    name = f"trial {len(study.trials()) + 1} of {plan.trials}: {describe_values(values)}"
    try:
        outcome, score = sweeps.run_child(parent, plan.run(values), plan.objective)
    except (RunError, *FAILURES) as error:
        if isinstance(error, RunError) and not isinstance(error.__cause__, FAILURES):
            raise
        study.fail(trial, " ".join(str(error).split()))
        on_run(f"{name}: failed: {error}", None)
        return
    study.tell(trial, score, outcome.run_name)
    on_run(f"{name}: {plan.objective} {score:.4f}", outcome)


def _confirm(values: dict[str, Any], plan: Search, num_seeds: int, parent: ParentRun, on_run: OnRun) -> SettingResult:
    """Run some values with the seeds that follow the recipe's seed, which the trials used."""
    first = plan.base.training.train.seed + 1
    name = f"best: {describe_values(values)}" if values else describe_values(values)
    scores, names = [], []
    for seed in range(first, first + num_seeds):
        outcome, score = sweeps.run_child(parent, plan.run(values, seed), plan.objective)
        on_run(f"{name}, seed {seed}: {plan.objective} {score:.4f}", outcome)
        scores.append(score)
        names.append(outcome.run_name)
    return SettingResult(name, names, scores)


def _log_results(
    title: str, plan: Search, parent: ParentRun, trials: list[Trial], best: Trial, lines: list[SettingResult]
) -> None:
    """Log the tables and the score of each trial."""
    client = MlflowClient()
    client.log_text(parent.run_id, optuna_study.to_html(title, plan, trials, best, lines), "search.html")
    for trial in trials:
        if trial.score is not None:
            client.log_metric(parent.run_id, f"search.{plan.objective}", trial.score, step=trial.number)
    client.set_tag(parent.run_id, "tuneline.best", best.name)
