"""Schedules as ZenML knows them: read, paused and deleted through its own records."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.utils.pagination_utils import depaginate

from tuneline.errors import NotFoundError
from tuneline.workflow.stack import PAGE, open_store


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


def all_schedules() -> list[Schedule]:
    """List the cron schedules of the active stack; other stacks' schedules are not ours to fire."""
    open_store()
    orchestrator = Client().active_stack_model.components[StackComponentType.ORCHESTRATOR][0]
    found = depaginate(Client().list_schedules, size=PAGE, hydrate=True, orchestrator_id=orchestrator.id)
    return [
        Schedule(
            id=str(schedule.id),
            name=schedule.name,
            cron_expression=schedule.cron_expression,
            active=bool(schedule.active),
            created=schedule.created.replace(tzinfo=UTC),
            pipeline_id=str(schedule.pipeline_id),
        )
        for schedule in found
        if schedule.cron_expression
    ]


def find(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        NotFoundError: There is none.
    """
    known = {schedule.name: schedule for schedule in all_schedules()}
    if name not in known:
        raise NotFoundError.among("schedule", name, known)
    return known[name]


def set_active(name: str, *, active: bool) -> None:
    """Pause a schedule, or let it run again."""
    Client().update_schedule(find(name).id, active=active)


def delete(name: str) -> None:
    """Forget a schedule; its runs stay."""
    Client().delete_schedule(find(name).id)


def snapshot_of(schedule_id: str) -> Any:
    """Return the newest snapshot that was submitted with a schedule: pipeline and parameters."""
    found = Client().list_snapshots(schedule_id=schedule_id, named_only=False, size=1, sort_by="desc:created")
    return Client().get_snapshot(found.items[0].id)
