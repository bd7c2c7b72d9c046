"""Responses that run while they are sent: disconnects, time limits, streams and their errors."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tuneline.serve.api.access import ClientClosedError, translate
from tuneline.serve.api.errors import ApiError
from tuneline.serve.api.formats import DONE, Collected, Format, Usage, event
from tuneline.serve.api.front import Front
from tuneline.serve.api.generation import Run
from tuneline.serve.api.plans import Plan
from tuneline.serve.api.record import Record, get_record
from tuneline.serve.deploy.interface import ServedVersion

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer the stream
]
JSON_TYPE = (b"content-type", b"application/json")
ABORT = "tuneline_abort"
"""Key in the state of a connection: function that closes it without waiting for its client."""

Prepare = Callable[[ServedVersion], Awaitable[tuple[Plan, Format]]]


async def run_connected(receive: Receive, work: Coroutine[Any, Any, None], seconds: float) -> None:
    """Run a coroutine until it ends, the client disconnects or the time is over.

    Raises:
        ClientClosedError: The client closed the connection; the work is cancelled.
        ApiError: Status 504, after the given time; the work is cancelled.
    """
    task, watcher = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(receive))
    try:
        done, _ = await asyncio.wait((task, watcher), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            task.result()
        elif watcher in done:
            raise ClientClosedError
        else:
            message = f"The request took longer than {seconds:g} s, the limit of this server. Ask for fewer tokens."
            raise ApiError(504, message, code="timeout")
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class WorkResponse(Response):
    """A JSON response whose body is computed while the connection is watched."""

    def __init__(self, front: Front, work: Callable[[Record], Awaitable[Any]]) -> None:
        self.front, self.work = front, work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            await send_json(send, await self.work(get_record(scope)))

        await run_connected(receive, answer(), self.front.settings.max_request_seconds)


@dataclass
class GenerationResponse(Response):
    """A generated answer, whole or as a stream. One version is used from the start to the end."""

    front: Front
    model: str
    prepare: Prepare
    stream: bool
    include_usage: bool
    background: None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record, settings = get_record(scope), self.front.settings
        writer = StreamWriter(scope, send, settings.write_timeout_seconds)
        work = self._answer(record, writer, send)
        try:
            await run_connected(receive, work, settings.max_request_seconds)
        except ClientClosedError:
            raise
        except Exception as error:
            if not writer.is_started:
                raise
            api_error = translate(error, settings.retry_after_seconds)
            record.error = api_error.code
            await writer.write(event(api_error.body))
            await writer.end()
        finally:
            writer.close()

    async def _answer(self, record: Record, writer: "StreamWriter", send: Send) -> None:
        acquired: AbstractAsyncContextManager[ServedVersion] = self.front.acquire(self.model, record)
        async with acquired as version:
            plan, answer_format = await self.prepare(version)
            record.prompt_tokens = plan.prompt_tokens
            self.front.check_queue(version.engine)
            run = Run(plan, version, record, self.front.metrics)
            if self.stream:
                await self._send_stream(run, answer_format, writer)
                return
            answers = [Collected() for _ in plan.requests]
            async with aclosing(run.deltas()) as deltas:
                async for index, delta in deltas:
                    answers[index].add(delta)
            usage = Usage(record.prompt_tokens, record.completion_tokens)
        await send_json(send, answer_format.whole(answers, usage))

    async def _send_stream(self, run: Run, answer_format: Format, writer: "StreamWriter") -> None:
        async with aclosing(run.deltas()) as deltas:
            async for index, delta in deltas:
                await writer.write(answer_format.chunk(index, delta))
        rest = DONE
        if self.include_usage:
            usage = Usage(run.record.prompt_tokens, run.record.completion_tokens)
            rest = answer_format.usage_chunk(usage) + DONE
        await writer.write(rest)
        await writer.end()


class StreamWriter:
    """Writes the events of a stream; a client that does not read them loses its connection."""

    def __init__(self, scope: Scope, send: Send, timeout: float) -> None:
        self._send, self._timeout = send, timeout
        self._abort: Callable[[], None] | None = scope.get("state", {}).get(ABORT)
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        """Time at which the running write began."""

        self.is_started = False

    async def write(self, data: bytes) -> None:
        """Send a part of the body. The response starts with the first one, so that earlier errors have a status."""
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            self._watch()
        await self._send_in_time({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Complete the response."""
        await self._send_in_time({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """Stop watching the client."""
        if self._timer is not None:
            self._timer.cancel()

    async def _send_in_time(self, message: Message) -> None:
        if self._abort is None:  # another server: it closes the connection after an error
            async with asyncio.timeout(self._timeout):
                await self._send(message)
            return
        self._since = time.monotonic()
        await self._send(message)
        self._since = None

    def _watch(self) -> None:
        """Close the connection if a write takes too long. One timer per stream costs less than one per write."""
        if self._since is not None and time.monotonic() - self._since >= self._timeout and self._abort is not None:
            self._abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._timeout / 2, self._watch)


async def send_json(send: Send, data: Any) -> None:
    """Send a JSON response."""
    body = orjson.dumps(data)
    headers = [JSON_TYPE, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
