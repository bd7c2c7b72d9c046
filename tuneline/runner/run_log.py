"""The log file of a command that runs pipelines: it receives what ZenML, MLflow and other libraries print and log.

Standard output and standard error are redirected by their file descriptors, so that C libraries and child processes
write to the file, too. The file is in `logs/` below the state root.
"""

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TextIO

from tuneline import state

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SECONDS_BETWEEN_READS = 0.2
DESCRIPTORS = {"stdout": 1, "stderr": 2}


class RunLog:
    """An open log file, and the streams of the terminal that it was opened from."""

    def __init__(self, path: Path, stdout: TextIO, stderr: TextIO, *, echo: bool) -> None:
        self.path, self.stdout, self.stderr, self.echo = path, stdout, stderr, echo
        self._reader = path.open(encoding="utf-8", errors="replace", newline="")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log echo", daemon=True)
        if echo:
            self._thread.start()

    def flush(self) -> None:
        """Write out what is buffered; with `echo`, copy it to standard error."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self.echo:
            with self._lock, suppress(OSError, ValueError):
                self.stderr.write(self._reader.read())
                self.stderr.flush()

    def close(self) -> None:
        """Copy the rest, and stop."""
        self._closed.set()
        if self.echo:
            self._thread.join()
        self.flush()
        self._reader.close()

    def _follow(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_READS):
            self.flush()


@contextmanager
def capture(name: str, *, echo: bool = False) -> Iterator[RunLog]:
    """Redirect output and log records to a new file while the block runs.

    Args:
        name: What the file name begins with.
        echo: Also copy everything to standard error.

    Yields:
        The log; its streams still write to the terminal.
    """
    path = _create(name)
    try:
        with ExitStack() as stack:
            stdout, stderr = (stack.enter_context(_redirect(stream, path)) for stream in DESCRIPTORS)
            log = RunLog(path, stdout, stderr, echo=echo)
            stack.callback(log.close)
            stack.enter_context(_record(path))
            yield log
    except Exception:
        with suppress(OSError):
            if path.exists():  # a caller may have deleted the log of a run that did not start
                with path.open("a", encoding="utf-8") as file:
                    file.write(traceback.format_exc())
        raise


def _create(name: str) -> Path:
    """Create an empty file whose name no other command has."""
    stem = f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in count(1):
        path = state.folder("logs") / f"{stem}{f'-{number}' if number > 1 else ''}.log"
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path
    raise AssertionError("count() does not end")


@contextmanager
def _redirect(name: str, path: Path) -> Iterator[TextIO]:
    """Redirect `sys.stdout` or `sys.stderr` to a file; yield a stream to the previous destination."""
    stream: TextIO = getattr(sys, name)
    stream.flush()
    if _descriptor(stream) != DESCRIPTORS[name]:  # replaced by a test or a notebook
        with _replace(name, path):
            yield stream
        return
    saved = os.dup(DESCRIPTORS[name])
    with path.open("ab") as file:
        os.dup2(file.fileno(), DESCRIPTORS[name])
    with open(saved, "w", encoding=stream.encoding, errors=stream.errors, buffering=1) as screen:  # noqa: PTH123
        try:
            yield screen
        finally:
            with suppress(OSError):
                stream.flush()
            os.dup2(saved, DESCRIPTORS[name])


@contextmanager
def _replace(name: str, path: Path) -> Iterator[None]:
    """Replace a stream that is no file; log handlers of libraries may keep the new one, so that it is not closed."""
    stream = getattr(sys, name)
    writer = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    setattr(sys, name, writer)
    try:
        yield
    finally:
        setattr(sys, name, stream)
        with suppress(OSError):
            writer.flush()


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None


@contextmanager
def _record(path: Path) -> Iterator[None]:
    """Write log records to a file, with time, level and logger."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        with suppress(OSError):
            handler.close()
