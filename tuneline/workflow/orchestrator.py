"""A local orchestrator that can be scheduled, which ZenML's own `local` flavor cannot.

Submitting a run configuration with `schedule:` records a native ZenML schedule, to be listed, paused and deleted with
ZenML's own commands; `tuneline scheduler` fires it. Without a schedule it is the local orchestrator. The same file runs
unchanged on Kubernetes, as a CronJob.
"""

import logging
from typing import Any

from zenml.models import ScheduleResponse, ScheduleUpdate
from zenml.orchestrators import SubmissionResult
from zenml.orchestrators.local.local_orchestrator import (
    LocalOrchestrator,
    LocalOrchestratorConfig,
    LocalOrchestratorFlavor,
)

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
            logger.info("The schedule is recorded: `tuneline scheduler` fires it.")
            return SubmissionResult(metadata={"fired_by": "tuneline scheduler"})
        return super().submit_pipeline(snapshot, *args, **kwargs)

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Nothing to do: the scheduler reads ZenML's own record at each look."""

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Nothing to do: the scheduler reads ZenML's own record at each look."""


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
