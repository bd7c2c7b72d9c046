"""Runs a sweep: one pipeline run per setting and seed; steps with equal inputs are computed once and cached."""

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
"""Called with the name of a setting and the results of one of its runs."""


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep."""

    metric: str
    lines: list[SettingResult]
    run_id: str
    """MLflow run of the sweep."""


def run(title: str, settings: list[Setting], on_run: OnRun = lambda name, outcome: None) -> SweepResult:
    """Run every setting with every seed.

    Args:
        title: Name of the MLflow run of the sweep.
        settings: Settings of `tuneline.config.experiments.sweep`.
        on_run: Called after each run.

    Raises:
        RunError: A run failed; earlier runs are kept.
    """
    tracker.connect()
    metric = settings[0].runs[0].training.gate().all_targets()[0].metric
    lines: list[SettingResult] = []
    with sweep.open_parent_run(title, settings[0].runs[0].pipeline) as parent:
        for setting in settings:
            scores, names = [], []
            for config in setting.runs:
                outcome, score = run_child(parent, config, metric)
                on_run(setting.name, outcome)
                names.append(outcome.run_name)
                scores.append(score)
            lines.append(SettingResult(setting.name, names, scores))
        ranked = sweep.rank(lines)
        parent.close(title, metric, ranked)
    return SweepResult(metric, ranked, parent.run_id)


def run_child(parent: ParentRun, config: RunConfig, metric: str) -> tuple[Outcome, float]:
    """Run a pipeline as a child of the run of a sweep or search; return its results and the score of the new model.

    Raises:
        RecipeError: The configuration has a schedule.
        RunError: The run failed.
    """
    outcome = start.start(config)
    if not isinstance(outcome, Outcome):
        raise RecipeError(f"{config.path}: schedule: not supported in a {parent.kind}. Remove it.")
    tracker.connect()  # ZenML's tracker resets the address of MLflow after each step
    parent.add_child(compare.find_run(outcome.run_name).info.run_id)
    return outcome, outcome.report.metrics()[metric]["model"].mean
