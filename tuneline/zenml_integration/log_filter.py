"""Filters of ZenML's log: tracebacks of errors that end with one line, and the copy on standard output."""

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
"""Loggers that write the traceback of a failed step, or of their own failure on a full disk."""


@contextmanager
def without_tracebacks() -> Iterator[None]:
    """Drop the tracebacks of Tuneline's errors, full disks and locked databases while the block runs."""
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


@contextmanager
def without_console() -> Iterator[None]:
    """Remove ZenML's log from standard output while the block runs; other handlers still receive it."""
    from zenml.logger import ZenMLConsoleHandler

    handlers = [handler for handler in logging.root.handlers if isinstance(handler, ZenMLConsoleHandler)]
    for handler in handlers:
        logging.root.removeHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logging.root.addHandler(handler)
