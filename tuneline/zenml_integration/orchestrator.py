"""A local orchestrator that supports schedules, which ZenML's `local` flavor does not.

A run configuration with `schedule:` records a native ZenML schedule, which ZenML's commands list, pause and delete, and
which `tuneline scheduler` runs. Without a schedule it is the local orchestrator. On Kubernetes, the same file creates a
CronJob.
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
    """Configuration of an orchestrator that supports schedules."""

    @property
    def is_schedulable(self) -> bool:
        return True


class ScheduledLocalOrchestrator(LocalOrchestrator):
    """Runs pipelines in this process; a pipeline with a schedule is only recorded."""

    def submit_pipeline(self, snapshot: Any, *args: Any, **kwargs: Any) -> SubmissionResult | None:
        if snapshot.schedule and kwargs.get("placeholder_run") is None:
            _check_cron_only(snapshot.schedule)
            logger.info("The schedule is recorded: `tuneline scheduler` runs it.")
            return SubmissionResult(metadata={"fired_by": "tuneline scheduler"})
        return super().submit_pipeline(snapshot, *args, **kwargs)

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Do nothing: the scheduler reads ZenML's record at each poll."""

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Do nothing: the scheduler reads ZenML's record at each poll."""


class UnsupportedScheduleError(PipelineSubmissionError, RecipeError):
    """A schedule from Python code that `tuneline scheduler` does not support; ZenML deletes its record."""


def _check_cron_only(schedule: ScheduleResponse) -> None:
    """Check a schedule as `with_options` checks one from a file.

    Raises:
        UnsupportedScheduleError: The schedule has no valid cron expression, or other keys.
    """
    cron = schedule.cron_expression
    unsupported = ("start_time", "end_time", "interval_second", "run_once_start_time", "catchup")
    rejected = [key for key in unsupported if getattr(schedule, key)]
    rejected += ["cron_expression"] if not cron or cron_error(cron) else []
    if rejected:
        raise UnsupportedScheduleError(
            f"schedule.{rejected[0]}: {getattr(schedule, rejected[0])!r} is not supported by the scheduler of this "
            "machine, which takes a cron_expression with five fields only. Write the times as one."
        )


class ScheduledLocalOrchestratorFlavor(LocalOrchestratorFlavor):
    """Registers the orchestrator in ZenML."""

    @property
    def name(self) -> str:
        return FLAVOR

    @property
    def config_class(self) -> type[ScheduledLocalOrchestratorConfig]:
        return ScheduledLocalOrchestratorConfig

    @property
    def implementation_class(self) -> type[ScheduledLocalOrchestrator]:
        return ScheduledLocalOrchestrator
