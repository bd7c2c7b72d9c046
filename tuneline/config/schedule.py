"""When a run configuration runs again by itself: the keys of ZenML's schedules, checked where they are written."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, field_validator, model_validator

from tuneline.config.base import Config
from tuneline.config.parsing.located_yaml import Problem

LOCAL_KEYS = ("name", "cron_expression")
"""The keys that `tuneline scheduler` implements."""

_RANDOM = re.compile(r"(?<![A-Za-z])[HRhr](?![A-Za-z])")


class ScheduleConfig(Config):
    """A schedule; orchestrators that schedule natively, like that of Kubernetes, know more keys than ours."""

    name: str | None = Field(None, min_length=1)
    """Unique in the ZenML project; left out, ZenML makes one."""

    cron_expression: str | None = None
    """Five fields: minute, hour, day of month, month, day of week; in UTC on this machine."""

    start_time: datetime | None = None
    end_time: datetime | None = None
    interval_second: timedelta | None = None
    catchup: bool = False
    """Run each missed time, not only the last one."""

    run_once_start_time: datetime | None = None

    @field_validator("cron_expression")
    @classmethod
    def _fires(cls, cron: str | None) -> str | None:
        if cron is not None and (wrong := cron_error(cron)):
            raise ValueError(wrong)
        return cron

    @model_validator(mode="after")
    def _says_when(self) -> "ScheduleConfig":
        periodic = self.start_time and self.interval_second
        if not (self.cron_expression or periodic or self.run_once_start_time):
            raise ValueError("says no time. Add a cron_expression, like '0 3 * * *'.")
        return self


def cron_error(cron: str) -> str:
    """Say what is wrong with a cron expression; an empty string where it is right.

    Args:
        cron: As written.
    """
    from croniter import croniter

    example = "Write five fields, like '0 3 * * *'."
    if not croniter.is_valid(cron) or _RANDOM.search(cron):
        return f"{cron!r} is no cron expression. {example}"
    if len(cron.split()) > 5:
        return f"{cron!r} has {len(cron.split())} fields, and seconds or years are not known here. {example}"
    try:
        croniter(cron, datetime.now(UTC)).get_next()
    except ValueError:  # croniter looks 50 years ahead
        return f"{cron!r} never fires: there is no such day. Correct day and month."
    return ""


def find_unsupported_keys(section: dict[str, Any]) -> Iterator[Problem]:
    """Yield the keys of a schedule that `tuneline scheduler` does not implement."""
    for key, value in section.items():
        if key not in LOCAL_KEYS and value not in (None, False):
            yield (
                ("schedule", key),
                "the scheduler of this machine knows cron_expression and name alone. Write the times as a "
                "cron_expression, like '*/15 * * * *' for each quarter of an hour, and leave this key out; or use a "
                "stack whose orchestrator schedules natively, like that of Kubernetes.",
            )
