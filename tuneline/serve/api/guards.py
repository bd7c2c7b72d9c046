"""Middlewares that reject requests before a route sees them: Host, Origin, keys and rates, sizes of bodies."""

import asyncio
import hashlib
import hmac
import math
import time
from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneline.serve.api.access import ClientClosedError
from tuneline.serve.api.errors import ApiError
from tuneline.serve.api.record import get_record
from tuneline.serve.api.settings import LOOPBACK_HOSTS, ApiKey

OPEN_ROUTES = frozenset({"/health"})
DRAIN_SECONDS = 5.0
DRAIN_FACTOR = 8
PERIOD_SECONDS = 60.0


def get_header(scope: Scope, name: bytes) -> str | None:
    """Return the value of a header."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


class HostGuard:
    """Reject long headers, and requests of web pages: by a name of their own (DNS rebinding) or from another origin."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...], max_header_bytes: int) -> None:
        self.app, self.max_header_bytes = app, max_header_bytes
        self.hosts = {host.lower() for host in (*LOOPBACK_HOSTS, *hosts)}
        self.origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.check_size(scope)
        host = (get_header(scope, b"host") or "").lower()
        self.check_host(host)
        origin = get_header(scope, b"origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        is_same = origin.lower() in (f"http://{host}", f"https://{host}")
        if not is_same and "*" not in self.origins and origin.lower() not in self.origins:
            message = f"Requests of the origin {origin[:200]!r} are not allowed. Add it to the allowed origins."
            raise ApiError(403, message, code="origin_not_allowed")
        await self._answer(scope, receive, send, origin)

    def check_size(self, scope: Scope) -> None:
        """Raise an error if path and headers are too long; h11 limits only headers that arrive in parts."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.max_header_bytes:
            message = f"Path and headers have {size} bytes; at most {self.max_header_bytes} are allowed. Shorten them."
            raise ApiError(431, message, code="headers_too_large", close=True)

    def check_host(self, host: str) -> None:
        """Raise an error if the `Host` header, without its port, is not allowed."""
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name not in self.hosts and "*" not in self.hosts:
            message = f"The host {host[:200]!r} is not allowed. Use a loopback name, or add it to the allowed hosts."
            raise ApiError(403, message, code="host_not_allowed")

    async def _answer(self, scope: Scope, receive: Receive, send: Send, origin: str) -> None:
        """Answer an allowed origin with the headers that browsers expect."""
        cors = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS" and get_header(scope, b"access-control-request-method") is not None:
            get_record(scope).route = "preflight"
            allowed = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
            allowed.append((b"access-control-allow-headers", b"authorization, content-type"))
            await send({"type": "http.response.start", "status": 204, "headers": [*cors, *allowed]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *cors]
            await send(message)

        await self.app(scope, receive, send_allowed)


class KeyUse:
    """A key with the requests that it sent."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self.digest = _digest(key.secret)
        self.running = 0
        self.times: deque[float] = deque()

    def start(self, now: float) -> None:
        """Count a request, or raise an error if a limit is reached."""
        key = self.key
        if key.max_concurrent is not None and self.running >= key.max_concurrent:
            message = f"Key {key.name!r} has {self.running} running requests, its maximum. Wait for one of them."
            raise ApiError(429, message, code="concurrency_limit_exceeded", retry_after=1)
        if key.requests_per_minute is not None:
            while self.times and self.times[0] <= now - PERIOD_SECONDS:
                self.times.popleft()
            if len(self.times) >= key.requests_per_minute:
                wait = math.ceil(self.times[0] + PERIOD_SECONDS - now)
                message = f"Key {key.name!r} sent {len(self.times)} requests within 60 seconds, its maximum. "
                raise ApiError(429, f"{message}Wait {wait} s.", code="rate_limit_exceeded", retry_after=max(wait, 1))
            self.times.append(now)
        self.running += 1

    def end(self) -> None:
        """Count the end of a request."""
        self.running -= 1


class KeyGuard:
    """Require a bearer key on every route but `/health`, and apply the limits of the key."""

    def __init__(self, app: ASGIApp, keys: tuple[ApiKey, ...]) -> None:
        self.app = app
        self.uses = [KeyUse(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.uses or scope["type"] != "http" or scope["path"] in OPEN_ROUTES:
            await self.app(scope, receive, send)
            return
        use = self.find(get_header(scope, b"authorization"))
        get_record(scope).key = use.key.name
        use.start(time.monotonic())
        try:
            await self.app(scope, receive, send)
        finally:
            use.end()

    def find(self, authorization: str | None) -> KeyUse:
        """Return the key of an `Authorization` header. The time that it takes does not depend on the secrets."""
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise ApiError(401, "No API key. Send the header 'Authorization: Bearer KEY'.", code="missing_api_key")
        digest = _digest(secret.strip())
        matches = [use for use in self.uses if hmac.compare_digest(use.digest, digest)]
        if not matches:
            raise ApiError(401, "Unknown API key. Send one of the keys of this server.", code="invalid_api_key")
        return matches[0]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class BodyGuard:
    """Limit the size of bodies, the time between two parts of a body, and the time of a whole body."""

    def __init__(self, app: ASGIApp, max_bytes: int, read_timeout: float, total_timeout: float) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.read_timeout, self.total_timeout = read_timeout, total_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        encoding = get_header(scope, b"content-encoding")
        if encoding not in (None, "identity"):
            raise ApiError(415, f"Content-Encoding {encoding!r} is not supported. Send plain JSON.", close=True)
        length = get_header(scope, b"content-length")
        if length is not None and int(length) > self.max_bytes:
            is_waiting = get_header(scope, b"expect") is not None  # the client sends nothing before our answer
            await self._reject(receive, f"{length} bytes", is_complete=is_waiting)
        size, is_complete, record = 0, False, get_record(scope)

        async def receive_limited() -> Message:
            nonlocal size, is_complete
            if is_complete:  # the message after the body is the end of the connection
                return await receive()
            message = await self._receive_part(receive, record.seconds)
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if size > self.max_bytes:
                await self._reject(receive, f"more than {self.max_bytes} bytes", is_complete=is_complete)
            return message

        await self.app(scope, receive_limited, send)

    async def _receive_part(self, receive: Receive, seconds: float) -> Message:
        timeout = min(self.read_timeout, self.total_timeout - seconds)
        try:
            async with asyncio.timeout(timeout):
                message = await receive()
        except TimeoutError:
            reason = f"The body is incomplete, and no part of it arrived for {self.read_timeout:g} s. Send it again."
            if timeout < self.read_timeout:
                reason = f"The body is not complete after {self.total_timeout:g} s. Send it faster."
            raise ApiError(408, reason, code="read_timeout", close=True) from None
        if message["type"] == "http.disconnect":
            raise ClientClosedError
        return message

    async def _reject(self, receive: Receive, size: str, is_complete: bool) -> None:
        """Raise the error after reading a part of the rest: clients read no response while they still send."""
        discarded = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not is_complete and discarded <= DRAIN_FACTOR * self.max_bytes:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    is_complete = not message.get("more_body", False)
        except TimeoutError:
            pass
        message_text = f"The body has {size}; at most {self.max_bytes} are allowed. Send a shorter request."
        raise ApiError(413, message_text, code="request_too_large", close=True)
