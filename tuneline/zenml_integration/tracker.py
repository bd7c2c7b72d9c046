"""Connects to the MLflow server or database of the active stack."""

from pathlib import Path

from zenml.client import Client
from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker

from tuneline.errors import TrackingError
from tuneline.tracking import server_check
from tuneline.zenml_integration import stack as stacks


def connect() -> str:
    """Set MLflow's tracking URI to the tracker of the active stack, and check that it responds.

    Returns:
        The tracking URI.

    Raises:
        TrackingError: The stack has no MLflow tracker, its artifact store does not exist, or MLflow does not respond.
    """
    stacks.open_store()
    stack = Client().active_stack
    tracker = stack.experiment_tracker
    if not isinstance(tracker, MLFlowExperimentTracker):
        raise TrackingError(
            f"The active ZenML stack {stack.name!r} has no MLflow experiment tracker. Run `tuneline init` for an "
            "embedded stack, or add a tracker of flavor mlflow to the stack."
        )
    store = stack.artifact_store
    if store.config.is_local and not Path(store.path).is_dir():
        raise TrackingError(
            f"The artifact store of stack {stack.name!r} is missing at {store.path}. Run `tuneline init`."
        )
    uri = tracker.get_tracking_uri()
    server_check.check_reachable(uri)
    tracker.configure_mlflow()
    server_check.create_schema(uri)
    return uri


def connect_to_registry(*experiments: str) -> str:
    """Connect, and check that the registry accepts models.

    Args:
        experiments: Names of the experiments of the runs; ZenML names them after the pipeline.

    Returns:
        The tracking URI.

    Raises:
        TrackingError: It does not.
    """
    uri = connect()
    server_check.check_registry(experiments)
    return uri
