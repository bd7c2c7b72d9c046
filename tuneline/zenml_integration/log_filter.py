"""ZenML's log without tracebacks of errors that are told in one line anyway."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tuneline.errors import TunelineError
from tuneline.storage_errors import translate

LOGGERS = (
    "zenml.orchestrators.step_launcher",
    "zenml.orchestrators.step_runner",
    "zenml.orchestrators.local.local_orchestrator",
    "zenml.log_stores.artifact.artifact_log_exporter",
)
"""Loggers that write the traceback of a failed step, each once, or of their own failure on a full disk."""


@contextmanager
def without_tracebacks() -> Iterator[None]:
    """Leave out the tracebacks of our own errors, full disks and locked databases, as long as this is open."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(_leave_out)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_leave_out)


def _leave_out(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None and (isinstance(error, TunelineError) or translate(error)):
        record.exc_info = None
    return True
