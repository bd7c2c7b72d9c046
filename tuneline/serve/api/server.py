"""Running an app with uvicorn: limits of connections, time limits, graceful stop."""

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tuneline.errors import TunelineError
from tuneline.serve.api.errors import ApiError
from tuneline.serve.api.responses import ABORT
from tuneline.serve.api.settings import ApiSettings

STOP_SECONDS = 30.0
KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
"""A client that vanished without closing its connection is noticed within about a minute (seconds; milliseconds)."""


class ServerError(TunelineError, OSError):
    """The server cannot listen."""


class JoinedWrites:
    """A transport that joins the writes of one turn of the event loop to one system call.

    uvicorn writes the headers, the first part of a body and its end separately.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write soon."""
        if not self._parts and data:
            self._loop.call_soon(self._flush)
        if data:
            self._parts.append(data)

    def close(self) -> None:
        """Write the rest, and close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close without writing the rest."""
        self._parts = []
        self._transport.abort()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for the headers, TCP probes, and closing that does not wait for the client."""

    header_timeout = 30.0
    """Seconds from the connection to the end of the headers of its first request."""

    max_connections = 2048
    """Requests of further connections are answered with status 503."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a connection."""
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self.app_state = {**self.app_state, ABORT: transport.abort}
        if len(self.connections) > self.max_connections:
            self.app = refuse
        self._unread = 0
        self._header_timer = self.loop.call_later(self.header_timeout, self._close_without_request)
        connection: socket.socket = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE_PROBES.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._header_timer.cancel()
        super().connection_lost(exc)

    def _close_without_request(self) -> None:
        if self.cycle is None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request. Only complete headers stop the timer of an idle connection."""
        self.conn.receive_data(data)
        self.handle_events()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; a client that still reads its last response gets more time."""
        unread = self.transport.get_write_buffer_size()
        if 0 < unread < self._unread or (unread and not self._unread):
            self._unread = unread
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.abort()


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of a connection above the limit."""
    message = "The server has its maximum number of connections. Send the request later."
    error = ApiError(503, message, code="too_many_connections", retry_after=1, close=True)
    await error.response()(scope, receive, send)


def build_server(app: FastAPI, settings: ApiSettings, stop_seconds: float = STOP_SECONDS) -> uvicorn.Server:
    """Return the server of an app; it logs nothing but its errors."""
    limits = {"header_timeout": settings.read_timeout_seconds, "max_connections": settings.max_connections}
    protocol = type("Protocol", (GuardedProtocol,), limits)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_seconds)),
        timeout_graceful_shutdown=math.ceil(stop_seconds),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        backlog=1024,
    )
    return uvicorn.Server(config)


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket. Port 0 is a free port.

    Raises:
        ServerError: The address is not available.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(address)
    except OSError as error:
        message = f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another host or port."
        raise ServerError(message) from error
    return connection


def get_url(connection: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = connection.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: FastAPI,
    host: str,
    port: int,
    settings: ApiSettings,
    *,
    on_listening: Callable[[str], None] | None = None,
    stop_seconds: float = STOP_SECONDS,
) -> None:
    """Serve an app until SIGINT or SIGTERM.

    The first signal stops accepting connections and waits for running answers, at most `stop_seconds`; then their
    clients get an error. The signal is raised again after that, as the commands expect it.

    Args:
        app: The app of `create_app`.
        host: Address to listen on.
        port: Port; 0 chooses a free one.
        settings: The settings of the app.
        on_listening: Called with the URL when connections are accepted.
        stop_seconds: Time that running answers get.

    Raises:
        ServerError: The address is not available.
    """
    connection = bind(host, port)
    server = build_server(app, settings, stop_seconds)
    asyncio.run(_serve(server, connection, on_listening))


async def _serve(server: Any, connection: socket.socket, on_listening: Callable[[str], None] | None) -> None:
    url = get_url(connection)
    if on_listening is None:
        await server.serve(sockets=[connection])
        return

    async def announce() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        on_listening(url)

    task = asyncio.create_task(announce())
    try:
        await server.serve(sockets=[connection])
    finally:
        task.cancel()


@contextmanager
def run_in_thread(
    app: FastAPI, settings: ApiSettings, host: str = "127.0.0.1", port: int = 0, stop_seconds: float = 5.0
) -> Iterator[str]:
    """Serve an app in a thread until the block ends; yields its URL. For tests, benchmarks and notebooks."""
    connection = bind(host, port)
    server = build_server(app, settings, stop_seconds)
    is_listening = threading.Event()
    error: list[BaseException] = []

    def serve() -> None:
        try:
            asyncio.run(_serve(server, connection, lambda url: is_listening.set()))
        except BaseException as failure:  # reported to the caller below
            error.append(failure)
            is_listening.set()

    thread = threading.Thread(target=serve, name="tuneline-api", daemon=True)
    thread.start()
    is_listening.wait()
    if error:
        raise error[0]
    try:
        yield get_url(connection)
    finally:
        server.should_exit = True
        thread.join(stop_seconds + 10)
