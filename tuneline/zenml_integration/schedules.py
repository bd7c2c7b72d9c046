"""Schedules as ZenML knows them: read, paused and deleted through its own records."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.utils.pagination_utils import depaginate

from tuneline.config import load, run_config
from tuneline.errors import NotFoundError, RecipeError
from tuneline.zenml_integration import orchestrator
from tuneline.zenml_integration.stack import PAGE_SIZE, open_store


@dataclass(frozen=True)
class Schedule:
    """A pipeline that is to run at the times of a cron expression (UTC)."""

    id: str
    name: str
    cron_expression: str
    active: bool
    created: datetime
    pipeline_id: str

    def row(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self) | {"created": self.created.isoformat()}


def check_schedule(checked: run_config.RunConfig) -> None:
    """Refuse a schedule that the active stack cannot keep.

    Raises:
        RecipeError: Its orchestrator takes no schedules, or is the one of this machine, which knows fewer keys.
    """
    stack = Client().active_stack
    if not stack.orchestrator.config.is_schedulable:
        raise RecipeError(
            f"{checked.path}: schedule: the orchestrator of stack {stack.name!r} takes no schedules. Run `tuneline "
            "init` for a stack that does, or leave schedule out."
        )
    if isinstance(stack.orchestrator, orchestrator.ScheduledLocalOrchestrator):
        load.check_local_schedule(checked)


def list_schedules() -> list[Schedule]:
    """List the schedules of the active stack; other stacks' schedules are not ours to fire.

    One without a cron expression is listed too: the scheduler says that it cannot fire it.
    """
    open_store()
    ours = Client().active_stack_model.components[StackComponentType.ORCHESTRATOR][0]
    found = depaginate(Client().list_schedules, size=PAGE_SIZE, hydrate=True, orchestrator_id=ours.id)
    return [
        Schedule(
            id=str(schedule.id),
            name=schedule.name,
            cron_expression=schedule.cron_expression or "",
            active=bool(schedule.active),
            created=schedule.created.replace(tzinfo=UTC),
            pipeline_id=str(schedule.pipeline_id),
        )
        for schedule in found
    ]


def find(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        NotFoundError: There is none.
    """
    known = {schedule.name: schedule for schedule in list_schedules()}
    if name not in known:
        raise NotFoundError.among("schedule", name, known)
    return known[name]


def set_active(name: str, *, active: bool) -> None:
    """Pause a schedule, or let it run again."""
    Client().update_schedule(find(name).id, active=active)


def delete(name: str) -> None:
    """Forget a schedule; its runs stay."""
    Client().delete_schedule(find(name).id)


def latest_snapshot(schedule_id: str) -> Any:
    """Return the newest snapshot that was submitted with a schedule: pipeline and parameters.

    Raises:
        NotFoundError: ZenML has none: the schedule or its pipeline was deleted.
    """
    found = Client().list_snapshots(schedule_id=schedule_id, named_only=False, size=1, sort_by="desc:created").items
    if not found:
        raise NotFoundError(
            f"Schedule {schedule_id} has no pipeline in ZenML any more. Record it again: tuneline schedule FILE."
        )
    return Client().get_snapshot(found[0].id)
