"""Interface between the front and the served versions."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from tuneline.errors import NotFoundError
from tuneline.serve.engines.interface import Engine


class UnknownModelError(NotFoundError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class RequestDefaults:
    """Values of the fields that a request omits."""

    sampling: dict[str, float] = field(default_factory=dict)
    """Sampling parameters by their API names; from the settings, else from the generation config of the model."""

    max_tokens: int | None = None
    system: str | None = None
    """System message of conversations that have none."""

    chat_template_kwargs: dict[str, bool | int | str] = field(default_factory=dict)
    """Variables of the chat template; those of a request have precedence."""


@dataclass(frozen=True)
class ServedVersion:
    """A loaded, verified version. Its identity never changes; a promotion makes another one."""

    name: str
    """Resolved name in responses: `name/7` of a registered version, otherwise the name of the folder or repository."""

    folder: Path
    """Folder of the tokenizer (and, for most engines, of the weights)."""

    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    fingerprint: str
    """`system_fingerprint`: digest of the content hash of the weights, the engine and its version."""

    adapter: str | None = None
    """Adapter of the engine that the name selects."""

    stop_ids: tuple[int, ...] = ()
    is_reward_model: bool = False
    defaults: RequestDefaults = RequestDefaults()


@dataclass(frozen=True)
class ModelEntry:
    """One entry of `/v1/models`."""

    id: str
    """Name that requests may use: `demo@champion`, `demo/7`, `demo`, an adapter."""

    resolved: str
    """Name of the version that answers at the moment."""

    created: int
    """Unix time of the version."""

    metadata: dict[str, str] = field(default_factory=dict)


class Deployment(Protocol):
    """All served versions."""

    def acquire(self, model: str) -> AbstractAsyncContextManager[ServedVersion]:
        """Resolve a name once, and keep that version loaded until the block ends.

        Args:
            model: Name of the request; an empty string is the default model.

        Raises:
            UnknownModelError: The name is not served.
        """
        ...

    def models(self) -> list[ModelEntry]:
        """Return the served names."""
        ...

    def is_ready(self) -> bool:
        """Return whether the default model is loaded and verified, and its engine is healthy."""
        ...

    async def close(self) -> None:
        """Stop all engines."""
        ...
