"""What the front knows about a request: written by guards and routes, read by the access log and the metrics."""

import time
from dataclasses import dataclass, field
from typing import Any, cast

KEY = "tuneline.record"


@dataclass
class Record:
    """One request."""

    method: str
    route: str
    """Path of the route, or `unknown`: paths of clients do not become labels of metrics."""

    status: int = 0
    """HTTP status; 499 if the client closed the connection before the answer was complete."""

    key: str = "-"
    """Name of the API key."""

    version: str = "-"
    """Resolved name of the version that answered."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompts: list[Any] = field(default_factory=list)
    """Prompts or messages, only if they are logged."""

    error: str | None = None
    """Code of an error, also of an error inside a stream that began with status 200."""

    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time since the request arrived."""
        return time.perf_counter() - self.start


def get_record(scope: Any) -> Record:
    """Return the record of a request."""
    return cast(Record, scope[KEY])
