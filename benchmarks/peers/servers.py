"""Inference servers under measurement: each is a child process on a loopback port with the same model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tuneline.export.gguf import llama_server

START_SECONDS = 180.0
KEY = "benchmark"
"""API key of requests; servers without keys ignore it."""


@dataclass(frozen=True)
class Server:
    """A server to start, and how to ask it."""

    name: str
    command: Callable[[int], list[str]]
    """Port -> command line."""

    model: str
    """Value of `model` in requests."""

    health: str = "/health"
    environment: dict[str, str] = field(default_factory=dict)
    port_variable: str | None = None
    """Environment variable with the port, for a server that has no option for it."""


@contextmanager
def running(server: Server, log: Path) -> Iterator[tuple[str, int]]:
    """Start a server, wait until it is healthy, and yield its address and process id; stop it at the end."""
    port = llama_server.free_port()
    with log.open("wb") as file:
        environment = os.environ | server.environment
        if server.port_variable:
            environment[server.port_variable] = str(port)
        process = subprocess.Popen(
            server.command(port), stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address + server.health, process, log)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"The server did not start: {url}\n{log.read_text(errors='replace')[-2000:]}")


def ours(folder: Path) -> Server:
    """`tuneline serve` with the engine transformers."""
    command = [sys.executable, "-m", "tuneline.cli.main", "serve", str(folder), "--dtype", "float32", "--port"]
    return Server("tuneline", lambda port: [*command, str(port)], folder.name)


def transformers_serve(folder: Path, *, batching: bool) -> Server:
    """`transformers serve`, with its continuous batching or without."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    command += ["--device", "cpu", "--dtype", "float32", *(["--continuous-batching"] if batching else []), "--port"]
    name = "transformers serve, continuous batching" if batching else "transformers serve"
    cache = folder.parent / "hub"
    cache.mkdir(exist_ok=True)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return Server(name, lambda port: [*command, str(port)], str(folder), environment=environment)


def llama_cpp(gguf: Path) -> Server:
    """llama.cpp's own server, from the wheel `xllamacpp`."""

    def command(port: int) -> list[str]:
        threads = os.cpu_count() or 1
        return llama_server.command(llama_server.ServerSettings(str(gguf), port, 1024, slots=16, threads=threads))

    name = f"llama.cpp ({gguf.stem.rpartition('-')[2]})"
    return Server(name, command, gguf.stem, environment={llama_server.KEY_VARIABLE: KEY})


def llamafactory(folder: Path, python: str) -> Server:
    """`llamafactory-cli api` in an environment of its own."""
    command = [python, "-m", "llamafactory.cli", "api", "--model_name_or_path", str(folder), "--template", "default"]
    command += ["--infer_dtype", "float32"]
    return Server(
        "llamafactory api",
        lambda port: command,
        "model",
        health="/v1/models",
        environment={"API_HOST": "127.0.0.1"},
        port_variable="API_PORT",
    )
