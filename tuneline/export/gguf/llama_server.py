"""llama.cpp's server (package xllamacpp) as a process of its own: a crash of the C++ code ends only that process.

`python -m tuneline.export.gguf.llama_server SETTINGS` serves on a loopback port until it is killed or, with
`watch_stdin`, until its standard input is closed. SETTINGS is `ServerSettings` as JSON. The API key is read from
`TUNELINE_ENGINE_KEY`, because other users of a machine can read command lines.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuneline.errors import SourceError, VerificationError

KEY_VARIABLE = "TUNELINE_ENGINE_KEY"
"""Environment variable with the API key."""

START_SECONDS = 600.0
"""Time limit for loading a model."""

LOG_TAIL = 2000
"""Number of characters of the log in error messages."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server process."""

    model: str
    """Path of the GGUF file."""

    port: int
    context: int = 0
    """Tokens per slot; 0: the model's maximum."""

    slots: int = 1
    """Number of requests that are decoded together."""

    threads: int = 0
    """CPU threads; 0: llama.cpp's choice."""

    exact: bool = False
    """Compute attention in float32 with a float32 cache, to compare outputs."""

    embedding: bool = False
    """Serve embeddings (the normalized mean of the last hidden states) instead of completions."""

    adapters: list[str] = field(default_factory=list)
    """Paths of LoRA adapters in GGUF format."""

    watch_stdin: bool = False
    """Exit when the standard input is closed, that is, when the parent process ends."""


def check_installed() -> None:
    """Check that xllamacpp is installed.

    Raises:
        SourceError: It is not.
    """
    if find_spec("xllamacpp") is None:
        raise SourceError(
            "GGUF files are quantized, verified and served by llama.cpp, and the package xllamacpp is not installed. "
            'Install the extra llama-cpp: pip install "tuneline[llama-cpp]".'
        )


def command(settings: ServerSettings) -> list[str]:
    """Return the command line of the server process."""
    return [sys.executable, "-m", "tuneline.export.gguf.llama_server", json.dumps(asdict(settings))]


def free_port() -> int:
    """Return a loopback port that is free at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class LlamaClient:
    """Blocking client of a server process."""

    def __init__(self, port: int, key: str) -> None:
        import requests

        self._url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {key}"

    def is_ready(self) -> bool:
        """Return whether the model is loaded."""
        import requests

        try:
            return bool(self._session.get(f"{self._url}/health", timeout=5).status_code == 200)
        except requests.RequestException:
            return False

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request and return the parsed response.

        Raises:
            VerificationError: The server rejects the request, or has died.
        """
        import requests

        try:
            response = self._session.post(f"{self._url}{path}", json=body, timeout=START_SECONDS)
        except requests.RequestException as error:
            raise VerificationError(f"llama.cpp died on a request to {path}: {error}.") from error
        if response.status_code != 200:
            raise VerificationError(f"llama.cpp rejected a request to {path}: {response.text[:500]}.")
        return response.json()


@contextmanager
def running_server(model: Path, *, context: int, slots: int = 1, exact: bool = True) -> Iterator[LlamaClient]:
    """Run a server for the duration of a block.

    Args:
        model: GGUF file.
        context: Tokens per request.
        slots: Number of requests that are decoded together.
        exact: Whether attention and cache use float32.

    Raises:
        SourceError: xllamacpp is not installed.
        VerificationError: llama.cpp cannot load the file.
    """
    check_installed()
    port, key = free_port(), secrets.token_hex(16)
    settings = ServerSettings(str(model), port, context, slots, exact=exact, watch_stdin=True)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(settings), stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, KEY_VARIABLE: key}
        )
        try:
            client = LlamaClient(port, key)
            deadline = time.monotonic() + START_SECONDS
            while not client.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-LOG_TAIL:]
                    raise VerificationError(f"llama.cpp cannot load {model.name}. End of its log:\n{tail}")
                time.sleep(0.05)
            yield client
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


def serve(settings: ServerSettings, key: str) -> Any:
    """Start the server in this process; it stops when the returned object is deleted."""
    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    params.model.path = settings.model
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], settings.port, [key]
    params.n_parallel, params.n_ctx = settings.slots, settings.context * settings.slots
    params.use_jinja, params.endpoint_slots, params.endpoint_props, params.ui = True, True, False, False
    params.fit_params, params.ctx_shift, params.warmup, params.cache_ram_mib = False, False, False, 0
    params.embedding = settings.embedding
    if settings.embedding:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if settings.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    if settings.exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if settings.adapters:
        params.lora_init_without_apply = True
        params.lora_adapters = [_adapter(path) for path in settings.adapters]
    return xllamacpp.Server(params)


def _adapter(path: str) -> Any:
    import xllamacpp

    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = path, 1.0
    return info


def main() -> None:
    """Serve until killed, or until the standard input is closed."""
    settings = ServerSettings(**json.loads(sys.argv[1]))
    server = serve(settings, os.environ[KEY_VARIABLE])
    while not settings.watch_stdin or sys.stdin.buffer.read(1):
        if not settings.watch_stdin:
            time.sleep(3600)
    del server
    os._exit(0)  # threads of llama.cpp may still be decoding


if __name__ == "__main__":
    main()
