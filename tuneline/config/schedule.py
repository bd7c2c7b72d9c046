"""Schedules of run configurations: ZenML's schedule keys, validated when the file is read."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, field_validator, model_validator

from tuneline.config.base import Config
from tuneline.config.parsing.located_yaml import Problem

LOCAL_KEYS = ("name", "cron_expression")
"""Keys that `tuneline scheduler` supports."""

_RANDOM = re.compile(r"(?<![A-Za-z])[HRhr](?![A-Za-z])")


class ScheduleConfig(Config):
    """Schedule of a pipeline.

    `tuneline scheduler` supports `name` and `cron_expression`; orchestrators with native scheduling, such as
    Kubernetes, support all keys.
    """

    name: str | None = Field(None, min_length=1)
    """Unique name within the ZenML project. If omitted, ZenML generates one."""

    cron_expression: str | None = None
    """Five fields: minute, hour, day of month, month, day of week. `tuneline scheduler` evaluates it in UTC."""

    start_time: datetime | None = None
    end_time: datetime | None = None
    interval_second: timedelta | None = None
    catchup: bool = False
    """Run every missed time instead of only the most recent one."""

    run_once_start_time: datetime | None = None

    @field_validator("cron_expression")
    @classmethod
    def _cron_expression_is_valid(cls, cron: str | None) -> str | None:
        if cron is not None and (error := cron_error(cron)):
            raise ValueError(error)
        return cron

    @model_validator(mode="after")
    def _has_a_time(self) -> "ScheduleConfig":
        periodic = self.start_time and self.interval_second
        if not (self.cron_expression or periodic or self.run_once_start_time):
            raise ValueError("has no time. Set cron_expression, like '0 3 * * *'.")
        return self


def cron_error(cron: str) -> str:
    """Return why a cron expression is invalid, or an empty string if it is valid.

    Args:
        cron: The expression as in the file.
    """
    from croniter import croniter

    example = "Write five fields, like '0 3 * * *'."
    if not croniter.is_valid(cron) or _RANDOM.search(cron):
        return f"{cron!r} is not a valid cron expression. {example}"
    if len(cron.split()) > 5:
        return f"{cron!r} has {len(cron.split())} fields; seconds and years are not supported. {example}"
    try:
        croniter(cron, datetime.now(UTC)).get_next()
    except ValueError:  # croniter looks 50 years ahead
        return f"{cron!r} never matches a date. Correct day and month."
    return ""


def find_unsupported_keys(section: dict[str, Any]) -> Iterator[Problem]:
    """Yield the schedule keys that `tuneline scheduler` does not support."""
    for key, value in section.items():
        if key not in LOCAL_KEYS and value not in (None, False):
            yield (
                ("schedule", key),
                "tuneline scheduler only supports cron_expression and name. Remove this key and set cron_expression, "
                "like '*/15 * * * *' for every 15 minutes; or use a stack whose orchestrator supports schedules, such "
                "as Kubernetes.",
            )
