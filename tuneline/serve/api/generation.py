"""Running the answers of a request: one engine iterator per choice, merged into one sequence of deltas."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from tuneline.serve.answers import parser as parsers
from tuneline.serve.answers.parts import Delta
from tuneline.serve.api.errors import bad_request
from tuneline.serve.api.metrics import Metrics
from tuneline.serve.api.plans import Plan
from tuneline.serve.api.record import Record
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest, Token

QUEUE_SIZE = 64
"""Deltas that wait for a slow client, over all choices of a request; then the engine's iterators wait."""

IndexedDelta = tuple[int, Delta]
Queue = asyncio.Queue[IndexedDelta | Exception | None]


@dataclass
class Run:
    """The running answers of a request."""

    plan: Plan
    version: ServedVersion
    record: Record
    metrics: Metrics

    def deltas(self) -> AsyncGenerator[IndexedDelta, None]:
        """Yield the deltas of all choices with the index of their choice, in the order in which they arrive."""
        if len(self.plan.requests) == 1:
            return self._choice(0, self.plan.requests[0])
        return self._merge()

    async def _choice(self, index: int, request: GenerationRequest) -> AsyncGenerator[IndexedDelta, None]:
        """Yield the deltas of one choice. The engine's iterator is closed as soon as the answer is complete."""
        parser = self._build_parser(request)
        tokens = self.version.engine.generate(request)
        timer = TokenTimer(self.record, self.metrics, self.version.name)
        try:
            while not parser.finished:
                delta = parser.feed(await self._next(tokens, request, is_first=timer.number == 0))
                timer.count()
                if delta is not None:
                    yield index, delta
            timer.end()
        finally:
            await close(tokens)

    async def _next(self, tokens: AsyncIterator[Token], request: GenerationRequest, is_first: bool) -> Token:
        """Return the next token. An engine reports an invalid grammar at the start: an error of the request."""
        try:
            return await anext(tokens)
        except StopAsyncIteration:
            name = self.version.engine.name
            raise EngineFailedError(f"The engine {name} ended an answer without its last token.") from None
        except ValueError as error:
            if not is_first:
                raise
            param = None if request.grammar is None else "response_format"
            raise bad_request(f"{str(error).rstrip('.')}.", param, "invalid_value") from error

    def _build_parser(self, request: GenerationRequest) -> parsers.AnswerParser:
        plan = self.plan
        return parsers.AnswerParser(
            self.version.tokenizer,
            request.prompt_ids,
            plan.stop,
            parse_tools=bool(plan.tools),
            tools=plan.tools,
            parse_reasoning=plan.parse_reasoning,
        )

    async def _merge(self) -> AsyncGenerator[IndexedDelta, None]:
        queue: Queue = asyncio.Queue(QUEUE_SIZE)
        requests = enumerate(self.plan.requests)
        tasks = [asyncio.create_task(self._fill(queue, index, request)) for index, request in requests]
        running = len(tasks)
        try:
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill(self, queue: Queue, index: int, request: GenerationRequest) -> None:
        """Put the deltas of one choice into a queue, and at its end None or its error."""
        try:
            async with aclosing(self._choice(index, request)) as deltas:
                async for delta in deltas:
                    await queue.put(delta)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)


async def close(iterator: AsyncIterator[Any]) -> None:
    """Close an iterator, which frees the slot of its request."""
    if (aclose := getattr(iterator, "aclose", None)) is not None:
        await aclose()


class TokenTimer:
    """Counts the tokens of an answer and measures their times."""

    def __init__(self, record: Record, metrics: Metrics, version: str) -> None:
        self.record, self.metrics, self.version = record, metrics, version
        self.number = 0
        self.first = 0.0

    def count(self) -> None:
        """Count a token."""
        if self.number == 0:
            self.first = time.perf_counter()
            self.metrics.observe_first_token(self.version, self.first - self.record.start)
        self.number += 1
        self.record.completion_tokens += 1

    def end(self) -> None:
        """Observe the mean time between two tokens."""
        if self.number > 1:
            seconds = (time.perf_counter() - self.first) / (self.number - 1)
            self.metrics.observe_time_per_token(self.version, seconds)
