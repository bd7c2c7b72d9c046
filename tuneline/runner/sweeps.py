"""Run a sweep: pipeline after pipeline, so that what they share is computed once and taken from the cache."""

from collections.abc import Callable
from dataclasses import dataclass

from tuneline.config.experiments.sweep import Setting
from tuneline.config.run_config import RunConfig
from tuneline.errors import RecipeError
from tuneline.runner import start
from tuneline.runner.start import Outcome
from tuneline.tracking import compare
from tuneline.tracking.experiments import sweep
from tuneline.tracking.experiments.sweep import ParentRun, SettingResult
from tuneline.zenml_integration import tracker

OnRun = Callable[[str, Outcome], None]
"""Hears the name of a setting and what one of its runs came to."""


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    metric: str
    lines: list[SettingResult]
    run_id: str
    """Its MLflow run."""


def run(title: str, settings: list[Setting], told: OnRun = lambda name, outcome: None) -> SweepResult:
    """Run every setting with every seed.

    Args:
        title: Of the sweep's own run.
        settings: Of `tuneline.config.experiments.sweep`.
        told: Called after each run.

    Raises:
        Refusal: A run was refused; those before it stay.
    """
    tracker.connect()
    metric = settings[0].runs[0].training.gate().all_targets()[0].metric
    lines: list[SettingResult] = []
    with sweep.open_parent_run(title, settings[0].runs[0].pipeline) as parent:
        for setting in settings:
            scores, names = [], []
            for config in setting.runs:
                outcome, score = run_child(parent, config, metric)
                told(setting.name, outcome)
                names.append(outcome.run_name)
                scores.append(score)
            lines.append(SettingResult(setting.name, names, scores))
        ranked = sweep.rank(lines)
        parent.close(title, metric, ranked)
    return SweepResult(metric, ranked, parent.run_id)


def run_child(parent: ParentRun, config: RunConfig, metric: str) -> tuple[Outcome, float]:
    """Run a pipeline as a child of a sweep's or a search's run; return what it came to, and the new model's score.

    Raises:
        RecipeError: The run has a schedule, so that there is nothing to wait for.
        Refusal: It was refused.
    """
    outcome = start.start(config)
    if not isinstance(outcome, Outcome):
        raise RecipeError(f"{config.path}: a {parent.kind} runs now. Leave schedule out.")
    tracker.connect()  # ZenML's tracker takes its address along when a step ends
    parent.add_child(compare.find_run(outcome.run_name).info.run_id)
    return outcome, outcome.report.metrics()[metric]["model"].mean
