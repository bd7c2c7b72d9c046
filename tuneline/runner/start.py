"""Starts the pipeline of a run configuration, and reads the results of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zenml.models import PipelineRunResponse

from tuneline.config.run_config import RunConfig
from tuneline.evaluation.report import Report
from tuneline.export.origin import Delivery
from tuneline.runner import package_resolution
from tuneline.tracking.decision import Decision


@dataclass(frozen=True)
class StepOutcome:
    """One step of a run: `cached`, `completed` or `failed`, and its seconds."""

    name: str
    status: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Results of a finished training run."""

    run_name: str
    pipeline: str
    steps: list[StepOutcome]
    report: Report
    decision: Decision
    model_folder: Path


@dataclass(frozen=True)
class ExportOutcome:
    """Results of a finished export run."""

    run_name: str
    pipeline: str
    steps: list[StepOutcome]
    delivery: Delivery

    def sentence(self) -> str:
        """Return where the export was written."""
        locations = [self.delivery.to or self.delivery.folder]
        if self.delivery.commit:
            locations.append(f"{self.delivery.repo_id} at commit {self.delivery.commit}")
        return f"exported to {' and '.join(locations)}"


def start(
    config: RunConfig, *, use_cache: bool = True, recompute: Sequence[str] = ()
) -> Outcome | ExportOutcome | None:
    """Run the pipeline of a run configuration.

    Args:
        config: Result of `tuneline.config.load.load`.
        use_cache: Reuse cached steps.
        recompute: Names of steps to run again even if they are cached.

    Returns:
        The results; None if the configuration has a schedule, which is recorded instead.

    Raises:
        RunError: The recipe, its data or the stack has an error, or a step failed.
    """
    pipeline = package_resolution.get_pipeline(config.pipeline)
    options: dict[str, Any] = {} if use_cache else {"enable_cache": False}
    if recompute:
        options["steps"] = {name: {"enable_cache": False} for name in recompute}
    run = pipeline.with_options(config_path=str(config.path), **options)()
    return None if run is None else read_outcome(run)


def read_outcome(run: PipelineRunResponse) -> Outcome | ExportOutcome:
    """Read the results of a finished run."""
    if "publish" not in run.steps:
        return read_training_outcome(run)
    name = run.pipeline.name if run.pipeline else ""
    return ExportOutcome(run.name, name, _steps(run), run.steps["publish"].output.load())


def read_training_outcome(run: PipelineRunResponse) -> Outcome:
    """Read the results of a finished training run."""
    steps = _steps(run)
    return Outcome(
        run_name=run.name,
        pipeline=run.pipeline.name if run.pipeline else "",
        steps=steps,
        report=run.steps["evaluate"].output.load(),
        decision=run.steps["register"].output.load(),
        model_folder=run.steps["merge_adapter"].output.load().path,
    )


def _steps(run: PipelineRunResponse) -> list[StepOutcome]:
    return [StepOutcome(name, str(step.status), _seconds(step)) for name, step in run.steps.items()]


def _seconds(step: Any) -> float:
    if str(step.status) == "cached" or not (step.start_time and step.end_time):
        return 0.0
    return float((step.end_time - step.start_time).total_seconds())
