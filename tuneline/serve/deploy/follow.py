"""Follow the aliases of a registered model: `champion` or another one for answers, `challenger` for shadow requests.

The registry is looked up in the background, so no request waits for it. A version that fails is not tried again until
the alias moves.
"""

import asyncio
import logging
from typing import Any, Protocol

from mlflow.exceptions import MlflowException

from tuneline import state
from tuneline.config.sections.export import RegisteredModel
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import NotFoundError, TunelineError, one_line
from tuneline.serve.deploy.loaded import LoadedVersion
from tuneline.serve.deploy.shadow import Shadow
from tuneline.tracking import ledger, registry
from tuneline.tracking.registry import Version

logger = logging.getLogger(__name__)

CHALLENGER = "challenger"


class Switchable(Protocol):
    """What the follower moves."""

    config: ServeConfig
    alias: RegisteredModel | None

    @property
    def current(self) -> LoadedVersion:
        """The version that answers new requests."""
        ...

    async def switch(self, version: Version) -> None:
        """Replace the version by another one; if that fails, the old one stays."""
        ...

    async def prepare_challenger(self, version: Version) -> LoadedVersion:
        """Load a version for shadow requests."""
        ...


class AliasFollower:
    """Looks the aliases up, and switches when they have moved."""

    def __init__(self, deployment: Switchable, shadow: Shadow | None) -> None:
        assert deployment.alias is not None, "only an alias moves"
        self._deployment, self._alias, self._shadow = deployment, deployment.alias, shadow
        self._rejected: dict[str, str] = {}
        """Alias -> version that failed and is not tried again."""

        self._problems: dict[str, str] = {}
        """Alias -> the last problem of its look-up, which is logged once."""

        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look the aliases up every `follow` seconds."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking them up."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Look the aliases up once."""
        async with self._lock:
            await self._follow_alias()
            if self._shadow:
                await self._follow_challenger(self._shadow)

    async def _run(self) -> None:
        if self._shadow:
            await self._try_refresh()
        while True:
            await asyncio.sleep(self._deployment.config.follow)
            await self._try_refresh()

    async def _try_refresh(self) -> None:
        try:
            await self.refresh()
        except Exception:  # the served version stays
            logger.exception("The aliases of %s could not be followed; the next look-up follows.", self._alias.name)

    async def _follow_alias(self) -> None:
        alias, served = self._alias, self._served_number()
        version = await self._find(alias.version)
        if version is None or not self._should_load(alias.version, version.version, served):
            return
        logger.warning("%s@%s moved from version %s to %s.", alias.name, alias.version, served, version.version)
        try:
            await self._deployment.switch(version)
        except Exception as error:
            self._rejected[alias.version] = version.version
            reason = one_line(error)
            logger.error(
                "%s/%s is not served; still serving version %s: %s", alias.name, version.version, served, reason
            )
            await asyncio.to_thread(record_rejection, version, alias.version, served, reason)

    async def _follow_challenger(self, shadow: Shadow) -> None:
        version = await self._find(CHALLENGER, quiet=True)
        loaded = _number(shadow.challenger)
        is_served = version is not None and version.version == self._served_number()
        if version is None or is_served:
            if old := await shadow.replace_challenger(None):
                await old.close()
            return
        if not self._should_load(CHALLENGER, version.version, loaded):
            return
        if old := await shadow.replace_challenger(None):
            await old.close()
        try:
            await shadow.replace_challenger(await self._deployment.prepare_challenger(version))
            logger.warning("%s/%s answers shadow requests: %s", version.name, version.version, shadow.path)
        except Exception as error:
            self._rejected[CHALLENGER] = version.version
            logger.error("%s/%s answers no shadow requests: %s", version.name, version.version, one_line(error))

    def _should_load(self, alias: str, number: str, current: str) -> bool:
        """Return whether a version is neither loaded nor rejected; an alias that moved away ends a rejection."""
        if self._rejected.get(alias) not in (None, number):
            del self._rejected[alias]
        return number not in (current, self._rejected.get(alias))

    def _served_number(self) -> str:
        try:
            return _number(self._deployment.current)
        except TunelineError:
            return ""

    async def _find(self, alias: str, *, quiet: bool = False) -> Version | None:
        """Return the version of an alias; None, with one warning, if there is none or the registry fails."""
        try:
            version = await asyncio.to_thread(registry.find_version, self._alias.name, alias)
        except (TunelineError, MlflowException, OSError) as error:
            problem = one_line(error)
            if self._problems.get(alias) != problem and not (quiet and isinstance(error, NotFoundError)):
                logger.warning("%s@%s: %s Still serving %s.", self._alias.name, alias, problem, self._served_number())
            self._problems[alias] = problem
            return None
        self._problems.pop(alias, None)
        return version


def record_rejection(version: Version, alias: str, served: str, reason: str) -> dict[str, Any] | None:
    """Write to the ledger that a server keeps the old version; a failure is logged."""
    try:
        with state.lock("promotion"):
            return ledger.append_event(
                "serving_rejected",
                version.name,
                alias,
                version.version,
                f"serving rejected: {reason}",
                serving=served,
            )
    except (TunelineError, OSError) as error:
        logger.error("The rejection of %s/%s is not in the ledger: %s", version.name, version.version, one_line(error))
        return None


def _number(loaded: LoadedVersion | None) -> str:
    return loaded.located.version.version if loaded and loaded.located.version else ""
