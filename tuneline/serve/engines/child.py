"""An engine in a child process: start, health, restart after a crash, logs.

The child serves HTTP on a loopback port with an API key, so that other users of the machine cannot use it. A thread
waits for its end and starts it again. Meanwhile, requests fail at once with `EngineFailedError`.
"""

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneline import state
from tuneline.export.gguf.llama_server import LOG_TAIL, free_port
from tuneline.serve.engines.interface import EngineFailedError

logger = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A child that was healthy for this long starts again without delay."""

POLL_SECONDS = 0.05
HEALTH_SECONDS = 5.0


@dataclass(frozen=True)
class ChildSpec:
    """How to start a child."""

    name: str
    """Name for logs, such as `llama_cpp`."""

    command: Callable[[int], list[str]]
    """Port -> command line."""

    key_variable: str
    """Environment variable that gives the API key to the child."""

    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 600.0
    """Time limit for loading the model."""

    max_restarts: int = 5
    """Number of failed starts in a row after which the child is given up."""


class ChildProcess:
    """A supervised child process that serves HTTP."""

    def __init__(self, spec: ChildSpec) -> None:
        """Start the child and wait until it is healthy.

        Raises:
            EngineFailedError: It exits, or does not become healthy in time; with the end of its log.
        """
        self.key = secrets.token_hex(16)
        self.log = state.folder("logs") / f"{spec.name}-{os.getpid()}-{secrets.token_hex(4)}.log"
        self.port = 0
        self.starts = 0
        """Number of successful starts."""

        self._spec = spec
        self._lock = threading.Lock()
        self._healthy, self._closed = threading.Event(), threading.Event()
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except EngineFailedError:
            self.close()
            raise
        self._thread = threading.Thread(target=self._supervise, name=f"{spec.name}-supervisor", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL; the port may change with a restart."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the guard of the child."""
        return self._process.pid if self._process else 0

    def is_healthy(self) -> bool:
        """Return whether the child runs and has loaded its model."""
        return self._healthy.is_set() and self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise an error if the child cannot answer.

        Raises:
            EngineFailedError: It is closed, restarting, or given up.
        """
        if not self.is_healthy():
            raise self.failure()

    def failure(self) -> EngineFailedError:
        """Return the error of requests that the child cannot answer."""
        if self._closed.is_set():
            return EngineFailedError(f"The engine {self._spec.name} is closed.")
        reason = self._failure or f"The engine {self._spec.name} died and is starting again."
        return EngineFailedError(f"{reason} Send the request again later. Log: {self.log}.")

    def close(self) -> None:
        """End the child and its process group; does nothing the second time."""
        self._closed.set()
        self._healthy.clear()
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        if process.stdin:
            process.stdin.close()  # the guard ends the group
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()  # the command dies with its guard
            process.wait()

    def _start(self) -> None:
        """Start the child once and wait until it is healthy.

        Raises:
            EngineFailedError: It exits, or does not become healthy in time.
        """
        port = free_port()
        environment = {**os.environ, **self._spec.environment, self._spec.key_variable: self.key}
        command = [sys.executable, "-m", "tuneline.serve.engines.guard", *self._spec.command(port)]
        with self._lock:
            if self._closed.is_set():
                raise self.failure()
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        self.port = port
        deadline = time.monotonic() + self._spec.start_seconds
        while not self._answers():
            if self._closed.is_set():
                raise self.failure()
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                event = f"exited with code {code}" if code is not None else "did not become healthy in time"
                self._end_process()
                raise EngineFailedError(
                    f"The engine {self._spec.name} {event}. End of its log ({self.log}):\n{self.log_tail()}"
                )
            time.sleep(POLL_SECONDS)
        self.starts += 1
        self._failure = ""
        self._healthy.set()

    def _end_process(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def get(self, path: str) -> Any:
        """Send a GET request and return the parsed response, None if it is empty.

        Raises:
            EngineFailedError: The child does not answer with status 200.
        """
        import requests

        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            with requests.Session() as session:
                session.trust_env = False
                response = session.get(f"{self.url}{path}", headers=headers, timeout=HEALTH_SECONDS)
        except requests.RequestException as error:
            raise EngineFailedError(f"The engine {self._spec.name} does not answer to {path}: {error}.") from error
        if response.status_code != 200:
            raise EngineFailedError(f"The engine {self._spec.name} answers {response.status_code} to {path}.")
        return response.json() if response.content else None

    def _answers(self) -> bool:
        try:
            self.get("/health")
        except EngineFailedError:
            return False
        return True

    def log_tail(self) -> str:
        """Return the end of the child's log."""
        try:
            return self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _supervise(self) -> None:
        """Start the child again whenever it ends."""
        backoff, failures = 0.0, 0
        while not self._closed.is_set():
            started = time.monotonic()
            assert self._process is not None
            code = self._process.wait()
            self._healthy.clear()
            if self._closed.is_set():
                return
            if time.monotonic() - started > STABLE_SECONDS:
                backoff = 0.0
            logger.warning(
                "The engine %s exited with code %s and starts again in %.0f s.", self._spec.name, code, backoff
            )
            while not self._closed.wait(backoff):
                backoff = min(max(1.0, 2 * backoff), MAX_BACKOFF_SECONDS)
                try:
                    self._start()
                    failures = 0
                    break
                except EngineFailedError as error:
                    failures += 1
                    logger.error("%s", error)
                    if failures >= self._spec.max_restarts:
                        self._failure = f"The engine {self._spec.name} failed {failures} times and is given up."
                        return
