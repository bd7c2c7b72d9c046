"""Run a search: trial after trial as pipeline runs, then the best with fresh seeds against the recipe's own values.

The best of many trials is partly the luckiest of them, so its own score is no measure of it; the re-runs are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient

from tuneline.config.experiments.search import Search
from tuneline.config.experiments.sweep import in_words
from tuneline.errors import ProofError, RecipeError, SourceError
from tuneline.runner import sweeps
from tuneline.runner.start import Outcome
from tuneline.tracking.experiments import optuna_study, sweep
from tuneline.tracking.experiments.optuna_study import Study, Trial
from tuneline.tracking.experiments.sweep import Line, Parent
from tuneline.zenml_integration import tracker
from tuneline.zenml_integration.strict_pipeline import Refusal

Told = Callable[[str, Outcome | None], None]
"""Hears what one run was, and what it came to; None where it failed."""

FAILURES = (RecipeError, SourceError, ProofError)
"""What values can be at fault for; anything else ends the search, which goes on when it is started again."""


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    trials: list[Trial]
    best: Trial
    lines: list[Line]
    """The best and the recipe's own values with fresh seeds, the better first."""

    verdict: str
    run_id: str
    """Its MLflow run."""


def run(title: str, asked: Search, num_seeds: int, told: Told = lambda name, outcome: None) -> Searched:
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
        optuna_study.alone(asked) as study,
        sweep.parent(title, asked.base.pipeline, kind="search", run_id=study.parent_run) as parent,
    ):
        study.parent_run = parent.run_id
        while len(study.trials()) < asked.trials:
            _try(study, asked, parent, told)
        best = study.best()
        lines = [_confirm(values, asked, num_seeds, parent, told) for values in (best.values, {})]
        trials = study.trials()
        _close(title, asked, parent, trials, best, lines)
    ranked = sweep.judged(lines, asked.direction)
    return Searched(trials, best, ranked, optuna_study.verdict(asked, *lines), parent.run_id)


def _try(study: Study, asked: Search, parent: Parent, told: Told) -> None:
    trial, values = study.draw()
    name = f"trial {len(study.trials()) + 1} of {asked.trials}: {in_words(values)}"
    try:
        outcome, score = sweeps.run_under(parent, asked.run(values), asked.objective)
    except (Refusal, *FAILURES) as error:
        if isinstance(error, Refusal) and not isinstance(error.__cause__, FAILURES):
            raise
        study.fail(trial, " ".join(str(error).split()))
        told(f"{name}: failed: {error}", None)
        return
    study.tell(trial, score, outcome.run_name)
    told(f"{name}: {asked.objective} {score:.4f}", outcome)


def _confirm(values: dict[str, Any], asked: Search, num_seeds: int, parent: Parent, told: Told) -> Line:
    """Run some values with seeds behind the recipe's own, which the trials had."""
    first = asked.base.training.train.seed + 1
    name = f"best: {in_words(values)}" if values else in_words(values)
    scores, names = [], []
    for seed in range(first, first + num_seeds):
        outcome, score = sweeps.run_under(parent, asked.run(values, seed), asked.objective)
        told(f"{name}, seed {seed}: {asked.objective} {score:.4f}", outcome)
        scores.append(score)
        names.append(outcome.run_name)
    return Line(name, names, scores)


def _close(title: str, asked: Search, parent: Parent, trials: list[Trial], best: Trial, lines: list[Line]) -> None:
    """Log the tables, and each trial's score."""
    client = MlflowClient()
    client.log_text(parent.run_id, optuna_study.to_html(title, asked, trials, best, lines), "search.html")
    for each in trials:
        if each.score is not None:
            client.log_metric(parent.run_id, f"search.{asked.objective}", each.score, step=each.number)
    client.set_tag(parent.run_id, "tuneline.best", best.name)
