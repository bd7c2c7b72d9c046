"""The active stack's MLflow: is it there, does it answer, and which address has it."""

from pathlib import Path

from zenml.client import Client
from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker

from tuneline.errors import TrackingError
from tuneline.tracking import server_check
from tuneline.zenml_integration import stack as stacks


def connect() -> str:
    """Point MLflow at the active stack's tracker, and look whether it answers.

    Returns:
        The tracking URI.

    Raises:
        TrackingError: The stack has no MLflow tracker, its store is gone, or MLflow does not answer.
    """
    stacks.open_store()
    stack = Client().active_stack
    tracker = stack.experiment_tracker
    if not isinstance(tracker, MLFlowExperimentTracker):
        raise TrackingError(
            f"The active ZenML stack {stack.name!r} has no MLflow experiment tracker. Run `tuneline init` for an "
            "embedded "
            "one, or add a tracker of flavor mlflow to the stack."
        )
    store = stack.artifact_store
    if store.config.is_local and not Path(store.path).is_dir():
        raise TrackingError(
            f"The artifact store of stack {stack.name!r} is gone from {store.path}. Run `tuneline init`."
        )
    uri = tracker.get_tracking_uri()
    server_check.check_reachable(uri)
    tracker.configure_mlflow()
    server_check.create_schema(uri)
    return uri


def connect_to_registry(*experiments: str) -> str:
    """Do what `connect` does, and ask whether the registry will take a model.

    Args:
        experiments: Names of the experiments that runs will belong to; ZenML calls them after the pipeline.

    Returns:
        The tracking URI.

    Raises:
        TrackingError: It would not.
    """
    uri = connect()
    server_check.check_registry(experiments)
    return uri
