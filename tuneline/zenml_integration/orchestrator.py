"""A local orchestrator that can be scheduled, which ZenML's own `local` flavor cannot.

Submitting a run configuration with `schedule:` records a native ZenML schedule, to be listed, paused and deleted with
ZenML's own commands; `tuneline scheduler` fires it. Without a schedule it is the local orchestrator. The same file runs
unchanged on Kubernetes, as a CronJob.
"""

import logging
from typing import Any

from zenml.models import ScheduleResponse, ScheduleUpdate
from zenml.orchestrators import SubmissionResult
from zenml.orchestrators.exceptions import PipelineSubmissionError
from zenml.orchestrators.local.local_orchestrator import (
    LocalOrchestrator,
    LocalOrchestratorConfig,
    LocalOrchestratorFlavor,
)

from tuneline.config.schedule import cron_error
from tuneline.errors import RecipeError

FLAVOR = "tuneline_local"
logger = logging.getLogger(__name__)


class ScheduledLocalOrchestratorConfig(LocalOrchestratorConfig):
    """Says that schedules are understood."""

    @property
    def is_schedulable(self) -> bool:
        return True


class ScheduledLocalOrchestrator(LocalOrchestrator):
    """Runs pipelines in this process; with a schedule it only records them."""

    def submit_pipeline(self, snapshot: Any, *args: Any, **kwargs: Any) -> SubmissionResult | None:
        if snapshot.schedule and kwargs.get("placeholder_run") is None:
            _refuse_other_times(snapshot.schedule)
            logger.info("The schedule is recorded: `tuneline scheduler` fires it.")
            return SubmissionResult(metadata={"fired_by": "tuneline scheduler"})
        return super().submit_pipeline(snapshot, *args, **kwargs)

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Nothing to do: the scheduler reads ZenML's own record at each look."""

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Nothing to do: the scheduler reads ZenML's own record at each look."""


class UnsupportedScheduleError(PipelineSubmissionError, RecipeError):
    """A schedule from Python code that `tuneline scheduler` would not keep; ZenML drops its record again."""


def _refuse_other_times(schedule: ScheduleResponse) -> None:
    """Refuse what a file would have been refused for already.

    Raises:
        ScheduleRefused: The schedule has no cron expression that fires, or more than that.
    """
    cron = schedule.cron_expression
    asked = ("start_time", "end_time", "interval_second", "run_once_start_time", "catchup")
    wrong = [key for key in asked if getattr(schedule, key)]
    wrong += ["cron_expression"] if not cron or cron_error(cron) else []
    if wrong:
        raise UnsupportedScheduleError(
            f"schedule.{wrong[0]}: {getattr(schedule, wrong[0])!r} is not kept by the scheduler of this machine, which "
            "knows a cron_expression of five fields alone. Write the times as one."
        )


class ScheduledLocalOrchestratorFlavor(LocalOrchestratorFlavor):
    """How ZenML finds the orchestrator."""

    @property
    def name(self) -> str:
        return FLAVOR

    @property
    def config_class(self) -> type[ScheduledLocalOrchestratorConfig]:
        return ScheduledLocalOrchestratorConfig

    @property
    def implementation_class(self) -> type[ScheduledLocalOrchestrator]:
        return ScheduledLocalOrchestrator
