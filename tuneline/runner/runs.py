"""Pipeline runs, read with ZenML's client."""

from itertools import islice
from typing import Any

from zenml.client import Client
from zenml.utils.pagination_utils import depaginate_stream

from tuneline.zenml_integration.stack import PAGE_SIZE, open_store


def latest(num_runs: int) -> list[dict[str, Any]]:
    """Return the newest runs, newest first: name, pipeline, status, times, and numbers of steps run and cached."""
    open_store()
    listed = depaginate_stream(
        Client().list_pipeline_runs, sort_by="desc:created", size=min(num_runs, PAGE_SIZE), hydrate=True
    )
    return [_row(run) for run in islice(listed, num_runs)]


def _row(run: Any) -> dict[str, Any]:
    statuses = [str(step.status) for step in run.steps.values()]
    seconds = (run.end_time - run.start_time).total_seconds() if run.start_time and run.end_time else None
    return {
        "name": run.name,
        "pipeline": run.pipeline.name if run.pipeline else None,
        "status": str(run.status),
        "started": run.start_time.isoformat() if run.start_time else None,
        "seconds": seconds,
        "steps_cached": statuses.count("cached"),
        "steps_run": len(statuses) - statuses.count("cached"),
        "id": str(run.id),
    }
