"""Run a server: load the model, listen, and stop on a signal after the running answers."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tuneline.config.parsing.key_file import KeyEntry
from tuneline.config.sections.serve import ServeConfig
from tuneline.serve.api import server
from tuneline.serve.api.app import create_app
from tuneline.serve.api.settings import ApiKey, ApiSettings
from tuneline.serve.deploy.deployment import RegistryDeployment
from tuneline.serve.deploy.loaded import LoadedVersion

STARTED_POLL_SECONDS = 0.01


async def serve(
    config: ServeConfig,
    keys: dict[str, KeyEntry],
    *,
    on_loaded: Callable[[RegistryDeployment, LoadedVersion], None],
    on_listening: Callable[[str], None],
) -> str:
    """Serve a model until SIGTERM or SIGINT; running answers get `drain_seconds` to finish.

    The address is reserved first, so a port that is in use is reported before the model is loaded.

    Args:
        config: Settings of the server.
        keys: API keys by name.
        on_loaded: Called when the model is loaded and verified.
        on_listening: Called with the URL when the server accepts connections.

    Returns:
        The name of the signal.

    Raises:
        TunelineError: The address is in use, or the model cannot be served.
    """
    connection = server.bind(config.host, config.port)
    deployment = RegistryDeployment(config)
    try:
        on_loaded(deployment, await deployment.start())
        settings = api_settings(config, keys)
        api_server = server.build_server(create_app(deployment, settings), settings, config.drain_seconds)
        return await _run_until_signal(api_server, connection, lambda: on_listening(server.get_url(connection)))
    finally:
        connection.close()
        await deployment.close()


def api_settings(config: ServeConfig, keys: dict[str, KeyEntry]) -> ApiSettings:
    """Return the settings of the API."""
    limits = config.limits
    return ApiSettings(
        keys=tuple(
            ApiKey(name, entry.key, entry.requests_per_minute, entry.max_concurrent) for name, entry in keys.items()
        ),
        allowed_hosts=(*config.allowed_hosts, *_own_host(config)),
        allowed_origins=tuple(config.allowed_origins),
        max_body_bytes=limits.max_body_bytes,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_tokens=limits.max_new_tokens,
        max_choices=limits.max_choices,
        max_waiting=limits.max_queue_length,
        max_request_seconds=limits.request_seconds,
        log_prompts=config.log_prompts,
    )


def _own_host(config: ServeConfig) -> list[str]:
    """Return the address that clients use, unless it stands for all addresses of this machine."""
    return [] if config.is_local or config.host in ("0.0.0.0", "::") else [config.host]


async def _run_until_signal(api_server: Any, connection: Any, on_listening: Callable[[], None]) -> str:
    """Run a uvicorn server; the first signal stops it after the running answers, a second one at once."""
    received: list[str] = []

    def stop(number: signal.Signals) -> None:
        api_server.force_exit = bool(received)
        api_server.should_exit = True
        received.append(number.name)

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    api_server.capture_signals = nullcontext  # uvicorn would raise the signal again after the last answer
    for number in before:
        loop.add_signal_handler(number, stop, number)
    task = asyncio.create_task(api_server.serve(sockets=[connection]))
    try:
        while not (api_server.started or task.done()):
            await asyncio.sleep(STARTED_POLL_SECONDS)
        if api_server.started:
            on_listening()
        await task
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    return received[0] if received else ""
