"""A loaded version, and the requests that use it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from tuneline.errors import NotFoundError
from tuneline.model import device
from tuneline.serve.deploy.canary import CanaryResult
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.deploy.located import LocatedModel
from tuneline.serve.engines.interface import Engine, EngineFailedError, EngineLoad, GenerationRequest, Token

logger = logging.getLogger(__name__)


@dataclass
class LoadedVersion:
    """A version in memory. Requests that began on it finish on it."""

    located: LocatedModel
    served: ServedVersion
    """The version without a selected adapter."""

    parity: str
    """Result of the comparison of its chat template with training, in one sentence."""

    canary: CanaryResult
    users: int = 0
    """Number of requests that use it."""

    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    def with_adapter(self, adapter: str | None) -> ServedVersion:
        """Return the version with an adapter selected; its name and fingerprint include the adapter."""
        if adapter is None:
            return self.served
        if adapter not in self.located.adapters:
            raise NotFoundError.among("adapter", adapter, self.located.adapters)
        name = adapter if adapter == self.located.adapter else f"{self.served.name}+{adapter}"
        return replace(self.served, name=name, adapter=adapter, fingerprint=f"{self.served.fingerprint}+{adapter}")

    @asynccontextmanager
    async def use(self, adapter: str | None = None) -> AsyncIterator[ServedVersion]:
        """Keep the version loaded until the block ends."""
        version = self.with_adapter(adapter)
        self.users += 1
        self._idle.clear()
        try:
            yield version
        finally:
            self.users -= 1
            if not self.users:
                self._idle.set()

    async def drain(self, seconds: float) -> int:
        """Wait until no request uses the version; return the number of requests that still do after `seconds`."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.warning(
                "%s: %d requests did not finish within %g seconds and are ended.", self.served.name, self.users, seconds
            )
        return self.users

    async def close(self) -> None:
        """Stop the engine and free its memory; running answers fail."""
        engine = self.served.engine
        self.served = replace(self.served, engine=cast(Engine, ClosedEngine(engine.name)))
        await asyncio.to_thread(engine.close)
        del engine  # the last reference to the weights
        self.located.discard()
        await asyncio.to_thread(device.release_memory)


@dataclass(frozen=True)
class ClosedEngine:
    """Takes the place of an engine that was closed, so that its weights can be freed."""

    name: str

    def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Raise an error: the engine is closed."""
        raise EngineFailedError("The version was closed. Send the request again.")

    def current_load(self) -> EngineLoad:
        """Return an empty load."""
        return EngineLoad(0, 0)

    def is_healthy(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing."""
