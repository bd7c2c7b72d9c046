"""What all routes share: the deployment, the settings, the metrics, and how a request gets its version."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuneline.serve.api.errors import ApiError, bad_request
from tuneline.serve.api.metrics import Metrics
from tuneline.serve.api.record import Record
from tuneline.serve.api.settings import ApiSettings
from tuneline.serve.deploy.interface import Deployment, ServedVersion, UnknownModelError
from tuneline.serve.engines.interface import Engine, EngineFailedError

LONG_TEXT = 20_000
"""Characters; longer texts (more than about 10 ms) are encoded in a thread, so that other requests continue."""

T = TypeVar("T")


class Front:
    """The deployment behind the API."""

    def __init__(self, deployment: Deployment, settings: ApiSettings) -> None:
        self.deployment, self.settings = deployment, settings
        self.metrics = Metrics()
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    @asynccontextmanager
    async def acquire(self, model: str, record: Record) -> AsyncIterator[ServedVersion]:
        """Resolve the model of a request once, and keep its version until the block ends."""
        async with self.deployment.acquire(model) as version:
            record.version = version.name
            self.metrics.answering[version.name] += 1
            try:
                yield version
            finally:
                self.metrics.answering[version.name] -= 1

    async def encode(self, size: int, function: Callable[[], T]) -> T:
        """Return the result of an encoder; texts of many characters are encoded in a thread."""
        if size < LONG_TEXT:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._encoder, function)

    def check_queue(self, engine: Engine) -> None:
        """Raise an error if too many requests wait."""
        waiting = engine.current_load().waiting
        if waiting > self.settings.max_waiting:
            message = f"{waiting} requests wait, and at most {self.settings.max_waiting} may. Send the request later."
            raise ApiError(503, message, code="queue_full", retry_after=self.settings.retry_after_seconds)

    def check_prompt(self, ids: list[int], version: ServedVersion, param: str, new_tokens: int = 0) -> None:
        """Raise an error if a prompt, with its answer, does not fit."""
        if not ids:
            raise bad_request(f"{param!r} has no tokens. Send a text.", param, "invalid_value")
        largest = max(ids)
        if largest >= (size := get_vocabulary_size(version)):
            message = f"{param!r} has the token id {largest}; the vocabulary has {size} tokens. Correct it."
            raise bad_request(message, param, "invalid_value")
        limit = self.settings.max_prompt_tokens
        if limit is not None and len(ids) > limit:
            message = f"The prompt has {len(ids)} tokens; this server accepts {limit}. Shorten it."
            raise bad_request(message, param, "context_length_exceeded")
        if len(ids) + max(new_tokens, 0) > version.engine.max_length:
            length = version.engine.max_length
            message = f"The context length of {version.name} is {length} tokens, and the request needs "
            message += f"{len(ids) + new_tokens} ({len(ids)} of the prompt, {new_tokens} of the answer). Shorten one."
            raise bad_request(message, param, "context_length_exceeded")

    async def scrape(self) -> bytes:
        """Return the metrics with the current load of all served versions."""
        loads = {}
        for entry in {entry.resolved: entry for entry in self.deployment.models()}.values():
            with suppress(UnknownModelError, EngineFailedError):  # a version that is replaced or restarts
                async with self.deployment.acquire(entry.id) as version:
                    loads[version.name] = version.engine.current_load()
        self.metrics.loads = loads
        return self.metrics.render()

    async def close(self) -> None:
        """Stop the engines."""
        self._encoder.shutdown(wait=False, cancel_futures=True)
        await self.deployment.close()


_SIZES: "WeakKeyDictionary[PreTrainedTokenizerBase, int]" = WeakKeyDictionary()


def get_vocabulary_size(version: ServedVersion) -> int:
    """Return the number of token ids of a tokenizer, which transformers would count anew each time."""
    if version.tokenizer not in _SIZES:
        _SIZES[version.tokenizer] = max(version.tokenizer.get_vocab().values()) + 1
    return _SIZES[version.tokenizer]
