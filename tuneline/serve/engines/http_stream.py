"""Streams of JSON from an engine in a child process."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from weakref import WeakKeyDictionary

import httpx2

from tuneline.serve.engines.child import ChildProcess
from tuneline.serve.engines.interface import EngineFailedError

READ_SECONDS = 600.0
"""Maximum time between two tokens, with the time in the queue."""


class Clients:
    """HTTP clients of an engine, one per event loop."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()

    def current(self) -> httpx2.AsyncClient:
        """Return the client of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _new_client(self._child)
        return self._clients[loop]


def _new_client(child: ChildProcess) -> httpx2.AsyncClient:
    """Create a client; connections are limited by the engine, not by the client."""
    return httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {child.key}"},
        timeout=httpx2.Timeout(READ_SECONDS, connect=10),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
        trust_env=False,
    )


async def post(clients: Clients, child: ChildProcess, path: str, body: dict[str, Any]) -> Any:
    """Send a request and return the parsed response.

    Raises:
        EngineFailedError: The child died, or failed.
        ValueError: The child rejects the request.
    """
    child.check()
    try:
        response = await clients.current().post(f"{child.url}{path}", json=body)
    except httpx2.HTTPError as error:
        raise child.failure() from error
    if response.status_code != 200:
        raise _error(response.status_code, response.text)
    return response.json()


async def stream(
    clients: Clients, child: ChildProcess, path: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a response; closing the iterator closes the connection, which cancels the request.

    Raises:
        EngineFailedError: The child died, or failed.
        ValueError: The child rejects the request.
    """
    child.check()
    try:
        async with clients.current().stream("POST", f"{child.url}{path}", json=body) as response:
            if response.status_code != 200:
                raise _error(response.status_code, (await response.aread()).decode(errors="replace"))
            async for line in response.aiter_lines():
                event, _, data = line.partition(":")
                if event == "error":
                    raise EngineFailedError(f"The engine failed: {data.strip()[:500]}")
                if event != "data" or data.strip() == "[DONE]":
                    continue
                content = json.loads(data)
                if "error" in content:
                    raise EngineFailedError(f"The engine failed: {str(content['error'])[:500]}")
                yield content
    except httpx2.HTTPError as error:
        raise child.failure() from error


def _error(status: int, text: str) -> Exception:
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text[:500]
    if 400 <= status < 500:
        return ValueError(f"The engine rejects the request: {message}")
    return EngineFailedError(f"The engine failed with status {status}: {message}")
