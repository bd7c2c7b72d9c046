"""The served version of a model: requests acquire it, and it is replaced while requests run.

The version is an attribute that only the event loop reads and writes, so a switch is atomic: a request gets the old or
the new version, and keeps it until it ends.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import TunelineError
from tuneline.serve.deploy import locate, memory, names
from tuneline.serve.deploy.follow import AliasFollower
from tuneline.serve.deploy.interface import ModelEntry, ServedVersion
from tuneline.serve.deploy.loaded import LoadedVersion
from tuneline.serve.deploy.located import LocatedModel
from tuneline.serve.deploy.prepare import Preparation
from tuneline.serve.deploy.shadow import Shadow
from tuneline.serve.engines.interface import EngineFailedError
from tuneline.tracking.registry import Version

logger = logging.getLogger(__name__)


class VersionAwayError(EngineFailedError):
    """The old version was stopped and the new one is not loaded yet (`swap: restart`)."""


class NoMemoryError(TunelineError):
    """The memory does not suffice for the old and the new version."""


class RegistryDeployment:
    """A model from the registry, which follows its alias, or from any other place."""

    def __init__(
        self,
        config: ServeConfig,
        preparation: Preparation | None = None,
        *,
        available_bytes: Callable[[], int] = memory.available_bytes,
    ) -> None:
        """Describe a deployment. `start` loads the model.

        Args:
            config: Settings of the server.
            preparation: Loads and checks versions.
            available_bytes: Returns the free memory.
        """
        self.config = config
        self.alias = names.followed_alias(config)
        self.away_seconds = 0.0
        """Total time without a version (`swap: restart`)."""

        self._preparation = preparation or Preparation(config)
        self._available_bytes = available_bytes
        self._current: LoadedVersion | None = None
        self._names: dict[str, str | None] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._shadow: Shadow | None = None
        if self.alias and config.shadow > 0:
            self._shadow = Shadow(self.alias.name, config.shadow, config.shadow_bytes, self._is_busy)
        self._follower = AliasFollower(self, self._shadow) if self.alias else None

    @property
    def current(self) -> LoadedVersion:
        """The version that answers new requests.

        Raises:
            VersionAwayError: There is none at the moment.
        """
        if self._current is None:
            raise VersionAwayError(
                f"{self.config.model} is not loaded at the moment: its new version is being loaded. Send the request "
                "again later."
            )
        return self._current

    @property
    def shadow_path(self) -> Path | None:
        """File with the answers of the challenger."""
        return self._shadow.path if self._shadow else None

    async def start(self) -> LoadedVersion:
        """Load, verify and check the model, then follow its alias.

        Raises:
            TunelineError: The model does not exist, cannot be loaded, or must not be served.
        """
        located = locate.locate(self.config)
        needed, available = memory.needed_bytes(located, self.config), self._available_bytes()
        if needed > available:
            logger.warning("%s needs about %s, and %s is free.", located.name, _gib(needed), _gib(available))
        loaded = await self._preparation.prepare(located, in_thread=False)
        if loaded.canary.degenerate:
            prompt, reason = next(iter(loaded.canary.degenerate.items()))
            logger.warning("%s: its answer to the canary prompt %r %s.", located.name, prompt, reason)
        self._switch_to(loaded)
        if self._follower and self.config.follow:
            self._follower.start()
        return loaded

    @asynccontextmanager
    async def acquire(self, model: str) -> AsyncIterator[ServedVersion]:
        """Resolve a name once, and keep that version loaded until the block ends.

        Args:
            model: Name of the request; an empty string is the default model.

        Raises:
            UnknownModelError: The name is not served.
            VersionAwayError: The new version is being loaded, and the old one did not fit beside it.
        """
        adapter = names.select(model, self._names)
        async with self.current.use(adapter) as version:
            yield version

    def models(self) -> list[ModelEntry]:
        """Return the served names; none while no version is loaded."""
        return names.entries(self._current, self._names) if self._current else []

    def is_ready(self) -> bool:
        """Return whether the model is loaded and verified, and its engine is healthy."""
        return self._current is not None and self._current.served.engine.is_healthy()

    async def refresh(self) -> None:
        """Look the alias up now, and switch if it has moved."""
        if self._follower:
            await self._follower.refresh()

    async def close(self) -> None:
        """Stop all engines."""
        if self._follower:
            await self._follower.stop()
        if self._shadow:
            await self._shadow.close()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        current, self._current = self._current, None
        if current:
            await current.close()

    async def switch(self, version: Version) -> None:
        """Replace the version by another one; if that fails, the old one stays.

        Raises:
            TunelineError: The new version must not be served.
        """
        located = await asyncio.to_thread(locate.locate_version, version, self.config)
        needed = await asyncio.to_thread(memory.needed_bytes, located, self.config)
        available = self._available_bytes()
        if needed <= available or self._current is None:
            await self._switch_beside(located)
        elif self.config.swap == "restart":
            await self._switch_by_restart(located, self._current)
        else:
            raise NoMemoryError(
                f"{located.name} needs about {_gib(needed)} beside the served version, and {_gib(available)} is free. "
                "Free memory, or serve with --swap restart."
            )

    async def prepare_challenger(self, version: Version) -> LoadedVersion:
        """Load a version for shadow requests.

        Raises:
            TunelineError: It cannot be loaded, does not fit, or has another tokenizer.
        """
        config = self.config.model_copy(update={"adapters": {}})
        located = await asyncio.to_thread(locate.locate_version, version, config)
        needed, available = memory.needed_bytes(located, config), self._available_bytes()
        if needed > available:
            raise NoMemoryError(f"{located.name} needs about {_gib(needed)}, and {_gib(available)} is free.")
        await asyncio.to_thread(_check_same_tokenizer, located, self.current.located)
        return await self._preparation.prepare(located)

    async def _switch_beside(self, located: LocatedModel) -> None:
        start = time.monotonic()
        old = self._current
        loaded = await self._preparation.prepare(located, old.canary if old else None)
        self._switch_to(loaded)
        before = old.served.name if old else "no version"
        logger.warning("Serving %s instead of %s, loaded in %.1f s.", located.name, before, time.monotonic() - start)
        if old:
            self._retire(old)

    async def _switch_by_restart(self, located: LocatedModel, old: LoadedVersion) -> None:
        """Stop the old version, then load the new one; if that fails, load the old one again."""
        start, self._current = time.monotonic(), None
        logger.warning("%s is stopped to free memory for %s.", old.served.name, located.name)
        try:
            await old.drain(self.config.drain_seconds)
            await old.close()
            try:
                loaded = await self._preparation.prepare(located, old.canary)
            except Exception:
                self._switch_to(await self._preparation.prepare(old.located))
                raise
            self._switch_to(loaded)
        finally:
            seconds = time.monotonic() - start
            self.away_seconds += seconds
            now = self._current.served.name if self._current else "no version"
            logger.warning("Serving %s after %.1f s without a version.", now, seconds)

    def _switch_to(self, loaded: LoadedVersion) -> None:
        if self._shadow:
            loaded = replace(loaded, served=self._shadow.wrap(loaded.served))
        self._current, self._names = loaded, names.served_names(loaded, self.config, self.alias)

    def _retire(self, old: LoadedVersion) -> None:
        """Close a version when its last request has ended."""

        async def drain_and_close() -> None:
            try:
                num_ended = await old.drain(self.config.drain_seconds)
            finally:
                await old.close()
            logger.info("%s is closed, %d requests were ended.", old.served.name, num_ended)

        task = asyncio.create_task(drain_and_close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _is_busy(self) -> bool:
        load = self._current.served.engine.current_load() if self._current else None
        return load is not None and bool(load.running or load.waiting)


def _check_same_tokenizer(challenger: LocatedModel, served: LocatedModel) -> None:
    from tuneline.model import source

    if (
        source.tokenizer_manifest(challenger.folder).content_hash()
        != source.tokenizer_manifest(served.folder).content_hash()
    ):
        raise TunelineError(
            f"{challenger.name} has another tokenizer or chat template than {served.name}, so it cannot answer the "
            "same prompt ids. Compare them by tuneline compare."
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
