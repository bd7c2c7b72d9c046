"""Shadow requests: a share of requests is also answered by the challenger, in the background, for comparison.

The answer to the client is unchanged and not delayed: its tokens are copied while they pass. The challenger gets the
same prompt ids and sampling parameters after the answer ended, one request at a time, and only while the served version
is idle: a request that arrives interrupts the challenger, which starts again later. Both answers are appended to
`shadow/NAME.jsonl` in the state root.
"""

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from tuneline import state
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.deploy.loaded import LoadedVersion
from tuneline.serve.engines.interface import Engine, EngineLoad, GenerationRequest, Token

logger = logging.getLogger(__name__)

MAX_PENDING = 1024
"""Number of requests that wait for the challenger; further ones are not compared."""

IDLE_POLL_SECONDS = 0.05
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class ShadowRequest:
    """An answered request that the challenger will answer too."""

    version: str
    """Name of the served version; the version itself may be closed before the comparison."""

    request: GenerationRequest
    tokens: list[Token]
    seconds: float
    """Duration of the served answer."""


class InterruptedByRequestError(Exception):
    """A request arrived while the challenger was answering."""


class Shadow:
    """The challenger, the requests that wait for it, and the file of answers."""

    def __init__(self, name: str, share: float, max_bytes: int, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Describe a comparison.

        Args:
            name: Registered model.
            share: Probability that a request is compared.
            max_bytes: Maximum size of the file.
            is_busy: Returns whether the served version is answering requests.
        """
        self.path: Path = state.root() / "shadow" / f"{name}.jsonl"
        self.challenger: LoadedVersion | None = None
        self.num_written = self.num_dropped = 0
        self._share, self._max_bytes = share, max_bytes
        self._is_busy = is_busy
        self._random = random.Random()
        self._pending: deque[ShadowRequest] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._is_full = False

    def wrap(self, version: ServedVersion) -> ServedVersion:
        """Return a version whose engine copies a share of its requests."""
        return replace(version, engine=cast(Engine, ShadowedEngine(version, self)))

    def selects(self, request: GenerationRequest) -> bool:
        """Return whether a request is compared; not with an adapter, which the challenger may not have."""
        if self.challenger is None or self._is_full or request.adapter is not None:
            return False
        return self._random.random() < self._share

    def submit(self, item: ShadowRequest) -> None:
        """Add an answered request; drop it if too many wait."""
        if self.challenger is None or len(self._pending) >= MAX_PENDING:
            self.num_dropped += 1
            return
        self._pending.append(item)
        self._idle.clear()
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def replace_challenger(self, challenger: LoadedVersion | None) -> LoadedVersion | None:
        """Set the challenger and return the one before it, which no request uses any more."""
        before, self.challenger = self.challenger, challenger
        self._pending.clear()
        if before:
            await before.drain(CLOSE_SECONDS)
        return before

    async def wait(self) -> None:
        """Wait until all submitted requests are compared."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop the comparison."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if challenger := await self.replace_challenger(None):
            await challenger.close()

    async def _run(self) -> None:
        while True:
            if not self._pending:
                self._idle.set()
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if self._is_busy():
                await asyncio.sleep(IDLE_POLL_SECONDS)
                continue
            item = self._pending.popleft()
            try:
                await self._compare(item)
            except InterruptedByRequestError:
                self._pending.appendleft(item)
            except Exception as error:  # a failure of the challenger must not affect the server
                logger.warning("The challenger did not answer a shadow request: %s", error)

    async def _compare(self, item: ShadowRequest) -> None:
        """Let the challenger answer, and write both answers."""
        challenger = self.challenger
        if challenger is None:
            return
        async with challenger.use() as version:
            start, tokens = time.monotonic(), list[Token]()
            async with aclosing(cast(Any, version.engine.generate(item.request))) as stream:
                async for token in stream:
                    tokens.append(token)
                    if token.finish is None and self._is_busy():
                        raise InterruptedByRequestError
            seconds = time.monotonic() - start
            await asyncio.to_thread(self._write, item, version, tokens, seconds)

    def _write(self, item: ShadowRequest, challenger: ServedVersion, tokens: list[Token], seconds: float) -> None:
        """Append both answers, unless the file is full."""
        line = {
            "time": round(time.time(), 3),
            "prompt_ids": item.request.prompt_ids,
            "max_tokens": item.request.max_tokens,
            "sampling": asdict(item.request.sampling),
            "served": _describe(item.version, challenger.tokenizer, item.tokens, item.seconds),
            "challenger": _describe(challenger.name, challenger.tokenizer, tokens, seconds),
        }
        data = f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        if size + len(data) > self._max_bytes:
            self._is_full = True
            logger.warning(
                "%s has %d of at most %d bytes: the comparison with the challenger ends. Move the file, and start "
                "the server again.",
                self.path,
                size,
                self._max_bytes,
            )
            return
        with self.path.open("ab") as file:
            file.write(data)
        self.num_written += 1


def _describe(name: str, tokenizer: PreTrainedTokenizerBase, tokens: list[Token], seconds: float) -> dict[str, Any]:
    """Return an answer as JSON-able fields; both versions have the same tokenizer."""
    ids = [token.id for token in tokens]
    return {
        "version": name,
        "ids": ids,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "finish": tokens[-1].finish if tokens else None,
        "seconds": round(seconds, 4),
    }


class ShadowedEngine:
    """The engine of a served version; a share of its requests is submitted to the shadow after the answer."""

    def __init__(self, version: ServedVersion, shadow: Shadow) -> None:
        self._version, self._engine, self._shadow = version, version.engine, shadow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Yield the tokens of the answer."""
        if not self._shadow.selects(request):
            return self._engine.generate(request)
        return self._copy(request)

    async def _copy(self, request: GenerationRequest) -> AsyncIterator[Token]:
        start, tokens = time.monotonic(), list[Token]()
        async with aclosing(cast(Any, self._engine.generate(request))) as stream:
            async for token in stream:
                tokens.append(token)
                if token.finish is not None:
                    seconds = time.monotonic() - start
                    self._shadow.submit(ShadowRequest(self._version.name, request, tokens, seconds))
                yield token

    def current_load(self) -> EngineLoad:
        """Return the load of the engine."""
        return self._engine.current_load()
