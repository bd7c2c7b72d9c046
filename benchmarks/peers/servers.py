"""Inference servers under measurement: each is a child process on a loopback port with the same model."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

START_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    """A server to start, and how to ask it."""

    name: str
    command: list[str]
    """`{port}` is replaced."""

    model: str
    """Value of `model` in requests."""

    health: str = "/health"
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(server: Server, log: Path) -> Iterator[tuple[str, int]]:
    """Start a server, wait until it is healthy, and yield its address and process id; stop it at the end."""
    port = free_port()
    command = [part.format(port=port) for part in server.command]
    with log.open("wb") as file:
        environment = os.environ | {key: value.format(port=port) for key, value in server.environment.items()}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
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
    command = [
        sys.executable,
        "-m",
        "tuneline.cli.main",
        "serve",
        str(folder),
        "--port",
        "{port}",
        "--dtype",
        "float32",
    ]
    return Server("tuneline", command, folder.name)


def transformers_serve(folder: Path, *, batching: bool) -> Server:
    """`transformers serve`, with its continuous batching or without."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    command += ["--port", "{port}", "--device", "cpu", "--dtype", "float32"]
    command += ["--continuous-batching"] if batching else []
    name = "transformers serve, continuous batching" if batching else "transformers serve"
    cache = folder.parent / "hub"
    cache.mkdir(exist_ok=True)
    return Server(name, command, str(folder), environment={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)})


LLAMA_CPP = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostname = sys.argv[1], int(sys.argv[2]), "127.0.0.1"
params.n_parallel, params.n_ctx, params.use_jinja = 16, 16 * 1024, True
params.cpuparams.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
time.sleep(1e6)
"""


def llama_cpp(gguf: Path) -> Server:
    """llama.cpp's own server, from the wheel `xllamacpp`."""
    command = [sys.executable, "-c", LLAMA_CPP, str(gguf), "{port}", str(os.cpu_count() or 1)]
    return Server(f"llama.cpp ({gguf.stem.rpartition('-')[2]})", command, gguf.stem)


def llamafactory(folder: Path, python: str) -> Server:
    """`llamafactory-cli api` in an environment of its own."""
    command = [python, "-m", "llamafactory.cli", "api", "--model_name_or_path", str(folder), "--template", "default"]
    command += ["--infer_dtype", "float32"]
    environment = {"API_PORT": "{port}", "API_HOST": "127.0.0.1"}
    return Server("llamafactory api", command, "model", health="/v1/models", environment=environment)
