"""MLflow runs: one parent run per pipeline run, one child run per training.

The child run has the metrics of a training while it runs. The results of cached steps are in their artifacts and are
logged to the parent run at the end, so that every parent run is complete and comparable.
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
"""Kind under which a process records the MLflow runs that it has not ended."""

DIGEST_LENGTH = 36
SECONDS_BETWEEN_TRIES = 10.0

logger = logging.getLogger(__name__)


@contextmanager
def start_training_run(name: str, resume_run_id: str | None = None) -> Iterator[tuple[str, "MetricBuffer"]]:
    """Open a child of the active run for the metrics of a training; a crash marks it as failed.

    Args:
        name: Name of a new child run.
        resume_run_id: Id of the child run of an interrupted training, which is continued.

    Yields:
        The id of the child run, and a function that takes the metrics of a step.
    """
    arguments: dict[str, Any] = {"run_name": name, "tags": {"tuneline.kind": "training"}}
    if resume_run_id and _exists(resume_run_id):
        arguments = {"run_id": resume_run_id}
    with (
        mlflow.start_run(**arguments, nested=True, log_system_metrics=True) as run,
        owner.current_owner().registered(MLFLOW_RUNS, owner_note(run.info.run_id)),
    ):
        buffer = MetricBuffer(run.info.run_id)
        yield run.info.run_id, buffer
        buffer.finish()


def owner_note(run_id: str) -> str:
    """Return the record of an MLflow run for `owner`: the URI of its store and its id."""
    return f"{mlflow.get_tracking_uri()} {run_id}"


class MetricBuffer:
    """Send the metrics of a training; metrics that cannot be sent are buffered and sent later.

    An unreachable tracking server never stops a training.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._pending: list[Metric] = []
        self._next_try = 0.0

    def __call__(self, figures: dict[str, float], step: int) -> None:
        """Add the metrics of a step."""
        now = int(time.time() * 1000)
        self._pending += [Metric(name, value, now, step) for name, value in figures.items() if value == value]
        if time.monotonic() >= self._next_try:
            self._send()

    def finish(self) -> None:
        """Try once more, and warn about metrics that were lost."""
        if self._pending and not self._send():
            logger.warning("Metric values of the training that could not be sent to MLflow: %d.", len(self._pending))

    def _send(self) -> bool:
        try:
            for chunk in _chunks(list(self._pending), 1000):
                mlflow.MlflowClient().log_batch(self._run_id, metrics=chunk)
                del self._pending[: len(chunk)]
        except (MlflowException, OSError) as error:  # errors of requests are OSErrors
            if not self._next_try:
                logger.warning("MLflow cannot be reached (%s). Training continues; its metrics are sent later.", error)
            self._next_try = time.monotonic() + SECONDS_BETWEEN_TRIES
            return False
        self._next_try = 0.0
        return True


def _exists(run_id: str) -> bool:
    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException:
        return False


def log_params(recipe: Mapping[str, Any]) -> None:
    """Log the resolved recipe, one parameter per value."""
    flat = {key: str(value)[:6000] for key, value in _flatten(recipe)}
    for names in _chunks(sorted(flat), 100):
        mlflow.log_params({name: flat[name] for name in names})


def try_logging(log: Callable[[], None]) -> None:
    """Log something optional; a warning if MLflow cannot be reached."""
    try:
        log()
    except (MlflowException, OSError) as error:
        logger.warning("Logging to MLflow failed (%s). The artifact has the same values.", error)


def log_history(history: list[dict[str, float]]) -> None:
    """Log the history of a training to the active run."""
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
    """Log metrics, except NaN."""
    mlflow.log_metrics({name: value for name, value in metrics.items() if value == value})


def log_inputs(manifest: Manifest, context: str) -> None:
    """Log datasets by name and digest, so that MLflow shows which content a run used."""
    for item in manifest.items:
        source = LocalArtifactDatasetSource(str(item.paths()[0]))
        dataset = MetaDataset(source, name=item.name, digest=item.content_hash()[:DIGEST_LENGTH])
        mlflow.log_input(dataset, context=context)


def log_text(name: str, text: str) -> None:
    """Log a text file to the active run."""
    mlflow.log_text(text, name)


def log_file(folder: str, name: str, write: Callable[[Path], None]) -> None:
    """Log a file that `write` creates to the active run."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        write(path)
        mlflow.log_artifact(str(path), folder)


def set_tags(tags: Mapping[str, str | None]) -> None:
    """Set tags of the active run, except empty ones."""
    mlflow.set_tags({name: value for name, value in tags.items() if value})


def git_commit() -> str | None:
    """Return the commit of the working directory, with `+changes` if files differ; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes.strip() else commit


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
