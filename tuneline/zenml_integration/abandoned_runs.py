"""Close what killed processes left: runs that ZenML and MLflow show as running, and files in the scratch folder.

Only what this state root's own processes noted is touched, on this host and for this user, once the kernel says that
they are gone. The state of an unfinished training is never touched: the next run goes on with it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.orchestrators import publish_utils
from zenml.orchestrators.local.local_orchestrator import LocalOrchestrator
from zenml.stack import Stack
from zenml.utils.pagination_utils import depaginate

from tuneline import owner, state
from tuneline.tracking.runs import MLFLOW_RUNS
from tuneline.zenml_integration import tracker

logger = logging.getLogger(__name__)

SNAPSHOTS = "zenml_snapshots"
"""Under which a process notes the snapshots whose runs it has not ended yet, behind the address of their store."""

RUNNING = "attributes.status = 'RUNNING'"


def close() -> list[str]:
    """Close what processes left that are gone.

    Returns:
        A line for each run that was closed, and one for what was removed; also logged as warnings.
    """
    try:
        with state.lock("abandoned", timeout_seconds=0):
            lines = [line for each in owner.dead_owners() for line in _closed(each)]
    except Timeout:  # another process does it now
        return []
    if freed := owner.clear_scratch():
        lines.append(f"removed {freed / 1e6:.1f} MB of unfinished work that no process needs")
    for line in lines:
        logger.warning(line)
    return lines


def record_run(stack: Stack, snapshot_id: str) -> None:
    """Note the run that is about to begin in this process."""
    if isinstance(stack.orchestrator, LocalOrchestrator):
        owner.current_owner().add(SNAPSHOTS, f"{_store()} {snapshot_id}")


@contextmanager
def mark_failed_on_error() -> Iterator[None]:
    """Own the runs that begin in a block; where it fails, mark as failed what ZenML left running."""
    mine = owner.current_owner()
    known = list(mine.notes.get(SNAPSHOTS, []))
    failed = True
    try:
        yield
        failed = False
    finally:
        for each in [each for each in mine.notes.get(SNAPSHOTS, []) if each not in known]:
            if not failed or _is_failed_now(each):
                mine.drop(SNAPSHOTS, each)


def _is_failed_now(snapshot: str) -> bool:
    try:
        tracker.connect()  # ZenML takes MLflow's address away behind each step that logs
        _fail_runs_of(snapshot)
    except Exception as error:  # the stores are out of reach: a later command closes the run
        logger.warning("The run could not be marked as failed (%s); the next command tries again.", error)
        return False
    return True


def _closed(dead: owner.DeadOwner) -> list[str]:
    """Close what a process left in the stores that are active now; what lies in others waits for them."""
    snapshots, mlflow_runs = dead.notes.get(SNAPSHOTS, []), dead.notes.get(MLFLOW_RUNS, [])
    if not snapshots and not mlflow_runs:
        dead.keep({})
        return []
    uri = tracker.connect()
    here = [each for each in snapshots if each.startswith(f"{_store()} ")]
    names = [name for each in here for name in _fail_runs_of(each)]
    there = [each for each in mlflow_runs if each.startswith(f"{uri} ")]
    for each in there:
        _fail_mlflow_run(each.rpartition(" ")[2])
    rest = {SNAPSHOTS: [each for each in snapshots if each not in here]}
    dead.keep(rest | {MLFLOW_RUNS: [each for each in mlflow_runs if each not in there]})
    return [f"{name}: its process is gone, so it was marked as failed" for name in names]


def _store() -> str:
    return str(Client().zen_store.url)


def _fail_runs_of(snapshot: str) -> list[str]:
    """Mark the runs of a snapshot as failed in both stores; return the names of those that ZenML showed as running."""
    names = []
    for run in depaginate(Client().list_pipeline_runs, snapshot_id=snapshot.rpartition(" ")[2], hydrate=True):
        _fail_in_mlflow(run.name)
        if not run.status.is_finished:
            _fail_in_zenml(run)
            names.append(run.name)
    return names


def _fail_mlflow_run(run_id: str) -> None:
    client = MlflowClient()
    with suppress(MlflowException):  # it was deleted
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "FAILED")


def _fail_in_zenml(run: PipelineRunResponse) -> None:
    for step in run.steps.values():
        if not step.status.is_finished:
            publish_utils.publish_step_run_status_update(step_run_id=step.id, status=ExecutionStatus.FAILED)
    publish_utils.publish_failed_pipeline_run(run.id)


def _fail_in_mlflow(name: str) -> None:
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    named = f"tags.`mlflow.runName` = '{name}' and {RUNNING}"
    for run in client.search_runs(experiments, named) if experiments else ():
        for child in client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and {RUNNING}"):
            client.set_terminated(child.info.run_id, "FAILED")
        client.set_terminated(run.info.run_id, "FAILED")
