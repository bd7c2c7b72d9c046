"""Events of the steps that ZenML runs in this process: started, cached, completed, failed or stopped.

ZenML has no hook that sees cached steps, so `listen` wraps the function that launches a step. Steps that run elsewhere,
for example on Kubernetes, send no events.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zenml.enums import ExecutionStatus
from zenml.orchestrators.step_launcher import StepLauncher

from tuneline.errors import StoppedError


@dataclass(frozen=True)
class StepEvent:
    """A change of a step's state."""

    step: str
    """Name of the step in its run, for example `align_first`."""

    status: str
    """`started`, `cached`, `skipped`, `completed`, `failed` or `stopped`."""

    seconds: float = 0.0
    """Time since the step started."""


@contextmanager
def listen(listener: Callable[[StepEvent], None]) -> Iterator[None]:
    """Call `listener` with each event while the block runs."""
    launch = StepLauncher.launch

    def launch_and_report(launcher: StepLauncher) -> Any:
        name, begin = launcher._invocation_id, time.monotonic()
        listener(StepEvent(name, "started"))
        try:
            step = launch(launcher)
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, StoppedError)
            listener(StepEvent(name, "failed" if failed else "stopped", time.monotonic() - begin))
            raise
        finished = step.status in (ExecutionStatus.CACHED, ExecutionStatus.SKIPPED)
        listener(StepEvent(name, str(step.status) if finished else "completed", time.monotonic() - begin))
        return step

    StepLauncher.launch = launch_and_report  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        StepLauncher.launch = launch  # type: ignore[method-assign]
