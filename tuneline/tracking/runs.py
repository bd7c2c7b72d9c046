"""MLflow runs: one parent a pipeline run, one child a training.

The child holds the live curves of a training. What a cached step did travels in its artifacts and is logged into the
parent at the end, so that each parent is complete and can be compared, whatever was cached.
"""

import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from tuneline import owner
from tuneline.identity import Manifest

TRAINING_RUN_NOTE = "tuneline.training_run"
MLFLOW_RUNS = "mlflow_runs"
"""Under which a process notes the MLflow runs that it has not ended yet."""

DIGEST_LENGTH = 36
SECONDS_BETWEEN_TRIES = 10.0

logger = logging.getLogger(__name__)


@contextmanager
def start_training_run(name: str, went_on: str | None = None) -> Iterator[tuple[str, "Curves"]]:
    """Open a child of the active run for the live curves of a training; a crash marks it failed.

    Args:
        name: Name of a new child.
        went_on: Id of the child that an interrupted training drew; its curves are continued.

    Yields:
        The child's id, and what to call with the figures of a step.
    """
    about: dict[str, Any] = {"run_name": name, "tags": {"tuneline.kind": "training"}}
    if went_on and _is_there(went_on):
        about = {"run_id": went_on}
    with (
        mlflow.start_run(**about, nested=True, log_system_metrics=True) as run,
        owner.current_owner().registered(MLFLOW_RUNS, owner_note(run.info.run_id)),
    ):
        curves = MetricBuffer(run.info.run_id)
        yield run.info.run_id, curves
        curves.finish()


def owner_note(run_id: str) -> str:
    """Return how a process notes an MLflow run that it has begun: behind the address of its store."""
    return f"{mlflow.get_tracking_uri()} {run_id}"


class MetricBuffer:
    """Deliver the figures of a training; what cannot be delivered waits, and is tried again.

    A tracking server that is out of reach costs a training some curves, never the training.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._waiting: list[Metric] = []
        self._next_try = 0.0

    def __call__(self, figures: dict[str, float], step: int) -> None:
        """Take the figures of a step."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in figures.items() if value == value]
        if time.monotonic() >= self._next_try:
            self._deliver()

    def finish(self) -> None:
        """Try once more, and tell what was lost."""
        if self._waiting and not self._deliver():
            logger.warning("MLflow did not take %d figures of the training's curves.", len(self._waiting))

    def _deliver(self) -> bool:
        try:
            for chunk in _chunks(list(self._waiting), 1000):
                mlflow.MlflowClient().log_batch(self._run_id, metrics=chunk)
                del self._waiting[: len(chunk)]
        except (MlflowException, OSError) as error:  # requests' errors are OSErrors
            if not self._next_try:
                logger.warning("MLflow is out of reach (%s). Training goes on; its curves wait.", error)
            self._next_try = time.monotonic() + SECONDS_BETWEEN_TRIES
            return False
        self._next_try = 0.0
        return True


def _is_there(run_id: str) -> bool:
    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException:
        return False


def log_params(recipe: Mapping[str, Any]) -> None:
    """Log the resolved recipe, one parameter a value."""
    flat = {key: str(value)[:6000] for key, value in _flatten(recipe)}
    for names in _chunks(sorted(flat), 100):
        mlflow.log_params({name: flat[name] for name in names})


def try_logging(log: Callable[[], None]) -> None:
    """Log something that a finished training can do without, should MLflow be out of reach."""
    try:
        log()
    except (MlflowException, OSError) as error:
        logger.warning("MLflow did not take what was to be logged (%s). The artifact holds it too.", error)


def log_history(history: list[dict[str, float]]) -> None:
    """Log the curves of a training into the active run."""
    run = _active()
    now = int(run.info.start_time)
    metrics = [
        Metric(name, value, now, int(entry["step"]))
        for entry in history
        for name, value in entry.items()
        if name != "step" and value == value
    ]
    for chunk in _chunks(metrics, 1000):
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=chunk)


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log plain figures; what is no number is left out."""
    mlflow.log_metrics({name: value for name, value in metrics.items() if value == value})


def log_inputs(manifest: Manifest, context: str) -> None:
    """Log data sets by name and digest, so that MLflow shows which bytes a run used."""
    for item in manifest.items:
        source = LocalArtifactDatasetSource(str(item.paths()[0]))
        dataset = MetaDataset(source, name=item.name, digest=item.content_hash()[:DIGEST_LENGTH])
        mlflow.log_input(dataset, context=context)


def log_text(name: str, text: str) -> None:
    """Keep a text beside the run."""
    mlflow.log_text(text, name)


def log_file(folder: str, name: str, write: Callable[[Path], None]) -> None:
    """Keep a file beside the run that `write` makes."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        write(path)
        mlflow.log_artifact(str(path), folder)


def set_tags(tags: Mapping[str, str | None]) -> None:
    """Tag the active run; what is not known is left out."""
    mlflow.set_tags({name: value for name, value in tags.items() if value})


def git_commit() -> str | None:
    """Return the commit of the working directory, marked where files differ from it; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if dirty.strip() else commit


def active_run_id() -> str:
    """Return the id of the active run."""
    return str(_active().info.run_id)


def _active() -> Any:
    run = mlflow.active_run()
    assert run is not None, "log into an active run"
    return run


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for i, inner in enumerate(value):
            yield from _flatten(inner, f"{prefix}.{inner.get('name', i)}")
    else:
        yield prefix, value


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
