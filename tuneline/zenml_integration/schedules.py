"""Schedules in ZenML: list, pause, resume and delete them."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tuneline.errors import NotFoundError, RecipeError
from tuneline.zenml_integration.stack import PAGE_SIZE, open_store

if TYPE_CHECKING:
    from tuneline.config.run_config import RunConfig


@dataclass(frozen=True)
class Schedule:
    """A pipeline that runs at the times of a cron expression (UTC)."""

    id: str
    name: str
    cron_expression: str
    active: bool
    created: datetime
    pipeline_id: str

    def row(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self) | {"created": self.created.isoformat()}


def check_schedule(checked: "RunConfig") -> None:
    """Check that the active stack supports a schedule.

    Raises:
        RecipeError: Its orchestrator supports no schedules, or not all keys.
    """
    from tuneline.config import load
    from tuneline.zenml_integration import orchestrator

    stack = _client().active_stack
    if not stack.orchestrator.config.is_schedulable:
        raise RecipeError(
            f"{checked.path}: schedule: the orchestrator of stack {stack.name!r} does not support schedules. Run "
            "`tuneline init` for a stack that does, or remove schedule."
        )
    if isinstance(stack.orchestrator, orchestrator.ScheduledLocalOrchestrator):
        load.check_local_schedule(checked)


def list_schedules() -> list[Schedule]:
    """List the schedules of the active stack, including those without a cron expression."""
    from zenml.enums import StackComponentType
    from zenml.utils.pagination_utils import depaginate

    open_store()
    orchestrator = _client().active_stack_model.components[StackComponentType.ORCHESTRATOR][0]
    schedules = depaginate(_client().list_schedules, size=PAGE_SIZE, hydrate=True, orchestrator_id=orchestrator.id)
    return [
        Schedule(
            id=str(schedule.id),
            name=schedule.name,
            cron_expression=schedule.cron_expression or "",
            active=bool(schedule.active),
            created=schedule.created.replace(tzinfo=UTC),
            pipeline_id=str(schedule.pipeline_id),
        )
        for schedule in schedules
    ]


def find(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        NotFoundError: No schedule has that name.
    """
    schedules = {schedule.name: schedule for schedule in list_schedules()}
    if name not in schedules:
        raise NotFoundError.among("schedule", name, schedules)
    return schedules[name]


def set_active(name: str, *, active: bool) -> None:
    """Pause or resume a schedule."""
    _client().update_schedule(find(name).id, active=active)


def delete(name: str) -> None:
    """Delete a schedule; its runs are kept."""
    _client().delete_schedule(find(name).id)


def latest_snapshot(schedule_id: str) -> Any:
    """Return the newest snapshot that was submitted with a schedule: pipeline and parameters.

    Raises:
        NotFoundError: The schedule or its pipeline was deleted.
    """
    snapshots = (
        _client().list_snapshots(schedule_id=schedule_id, named_only=False, size=1, sort_by="desc:created").items
    )
    if not snapshots:
        raise NotFoundError(
            f"Schedule {schedule_id} has no pipeline in ZenML. Record it again: tuneline schedule FILE."
        )
    return _client().get_snapshot(snapshots[0].id)


def _client() -> Any:
    from zenml.client import Client  # takes seconds to import

    return Client()
