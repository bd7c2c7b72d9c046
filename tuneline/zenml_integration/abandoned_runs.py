"""Marks the runs of killed processes as failed in ZenML and MLflow, and removes their files from the scratch folder.

Only runs that processes of this state root, host and user recorded are changed, once the kernel reports that the
process is gone. The state of an unfinished training is kept, and the next run resumes from it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from filelock import Timeout

from tuneline import owner, state

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse
    from zenml.stack import Stack

logger = logging.getLogger(__name__)

SNAPSHOTS = "zenml_snapshots"
"""Key of a process's notes for the snapshots of its open runs, each after the URL of its store."""

RUNNING = "attributes.status = 'RUNNING'"


def close() -> list[str]:
    """Close the runs of processes that are gone.

    Returns:
        A line per closed run, and one about removed files; also logged as warnings.
    """
    try:
        with state.lock("abandoned", timeout_seconds=0):
            lines = [line for process in owner.dead_owners() for line in _close(process)]
    except Timeout:  # another process closes them
        return []
    if freed := owner.clear_scratch():
        lines.append(f"removed {freed / 1e6:.1f} MB of unfinished work that no process uses")
    for line in lines:
        logger.warning(line)
    return lines


def record_run(stack: "Stack", snapshot_id: str) -> None:
    """Record the run that is about to start in this process."""
    from zenml.orchestrators.local.local_orchestrator import LocalOrchestrator

    if isinstance(stack.orchestrator, LocalOrchestrator):
        owner.current_owner().add(SNAPSHOTS, f"{_store()} {snapshot_id}")


@contextmanager
def mark_failed_on_error() -> Iterator[None]:
    """Own the runs that start in the block; if it fails, mark them as failed where ZenML shows them as running."""
    owned = owner.current_owner()
    before = list(owned.notes.get(SNAPSHOTS, []))
    failed = True
    try:
        yield
        failed = False
    finally:
        for snapshot in [item for item in owned.notes.get(SNAPSHOTS, []) if item not in before]:
            if not failed or _mark_failed(snapshot):
                owned.drop(SNAPSHOTS, snapshot)


def _mark_failed(snapshot: str) -> bool:
    from tuneline.zenml_integration import tracker

    try:
        tracker.connect()  # ZenML resets the address of MLflow after each step
        _fail_runs_of(snapshot)
    except Exception as error:  # the stores cannot be reached: a later command closes the run
        logger.warning("The run could not be marked as failed (%s); the next command tries again.", error)
        return False
    return True


def _close(dead: owner.DeadOwner) -> list[str]:
    """Close the runs of a process in the active stores; runs in other stores stay recorded."""
    if not any(dead.notes.values()):
        dead.keep({})
        return []
    from tuneline.tracking.runs import MLFLOW_RUNS
    from tuneline.zenml_integration import tracker

    snapshots, mlflow_runs = dead.notes.get(SNAPSHOTS, []), dead.notes.get(MLFLOW_RUNS, [])
    uri = tracker.connect()
    own_snapshots = [note for note in snapshots if note.startswith(f"{_store()} ")]
    names = [name for note in own_snapshots for name in _fail_runs_of(note)]
    own_mlflow_runs = [note for note in mlflow_runs if note.startswith(f"{uri} ")]
    for note in own_mlflow_runs:
        _fail_mlflow_run(note.rpartition(" ")[2])
    rest = {SNAPSHOTS: [note for note in snapshots if note not in own_snapshots]}
    dead.keep(rest | {MLFLOW_RUNS: [note for note in mlflow_runs if note not in own_mlflow_runs]})
    return [f"{name}: its process is gone, so it was marked as failed" for name in names]


def _store() -> str:
    from zenml.client import Client

    return str(Client().zen_store.url)


def _fail_runs_of(snapshot: str) -> list[str]:
    """Mark the runs of a snapshot as failed in both stores; return the names of those that ZenML showed as running."""
    from zenml.client import Client
    from zenml.utils.pagination_utils import depaginate

    names = []
    for run in depaginate(Client().list_pipeline_runs, snapshot_id=snapshot.rpartition(" ")[2], hydrate=True):
        _fail_in_mlflow(run.name)
        if not run.status.is_finished:
            _fail_in_zenml(run)
            names.append(run.name)
    return names


def _fail_mlflow_run(run_id: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    with suppress(MlflowException):  # it was deleted
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "FAILED")


def _fail_in_zenml(run: "PipelineRunResponse") -> None:
    from zenml.enums import ExecutionStatus
    from zenml.orchestrators import publish_utils

    for step in run.steps.values():
        if not step.status.is_finished:
            publish_utils.publish_step_run_status_update(step_run_id=step.id, status=ExecutionStatus.FAILED)
    publish_utils.publish_failed_pipeline_run(run.id)


def _fail_in_mlflow(name: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    named = f"tags.`mlflow.runName` = '{name}' and {RUNNING}"
    for run in client.search_runs(experiments, named) if experiments else ():
        for child in client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and {RUNNING}"):
            client.set_terminated(child.info.run_id, "FAILED")
        client.set_terminated(run.info.run_id, "FAILED")
