"""Open the model of a chat: on a server, or in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuneline.errors import RecipeError
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import ChatClient
from tuneline.serve.chat.session import Session

if TYPE_CHECKING:  # imports transformers, which a chat with a server does not need
    from tuneline.serve.deploy.interface import ModelEntry, ServedVersion


@dataclass(frozen=True)
class Target:
    """What a chat talks to: a model in this process, or a model on a server."""

    model: str = ""
    url: str | None = None
    key: str | None = None


async def open_session(target: Target) -> Session:
    """Open a session.

    Raises:
        TunelineError: The model or the server cannot be used.
    """

    async def open_other(name: str) -> ChatClient:
        if name or target.url is None:
            return await open_client(replace(target, model=name or base_model_name(target.model)))
        raise RecipeError("The base model of a model on a server is not known. Name a model that the server has.")

    return Session(await open_client(target), open_other)


async def open_client(target: Target) -> ChatClient:
    """Open a client.

    Raises:
        TunelineError: The model or the server cannot be used.
    """
    if target.url is None:
        return await asyncio.to_thread(open_local, target.model)
    client = HttpClient(target.url, target.model, target.key)
    try:
        await client.select_model()
    except BaseException:
        await client.close()
        raise
    return client


def open_local(text: str) -> ChatClient:
    """Load a model into this process.

    Raises:
        TunelineError: It does not exist, or cannot be loaded.
    """
    from tuneline.serve.chat import models, parts
    from tuneline.serve.chat.in_process import InProcessClient

    version = models.load_version(models.open_model(text))
    return InProcessClient(FixedDeployment(version), "", version.name, parts.encode, parts.make_parser)


def base_model_name(text: str) -> str:
    """Return the name of the model that a model was trained from, as `open_model` takes it.

    Raises:
        RecipeError: It is not known.
    """
    from tuneline.serve.chat import models

    return models.base_model(text)


class FixedDeployment:
    """A deployment with one version, which never changes."""

    def __init__(self, version: "ServedVersion") -> None:
        self.version = version

    @asynccontextmanager
    async def acquire(self, model: str) -> "AsyncIterator[ServedVersion]":
        """Return the version, whatever the name."""
        yield self.version

    def models(self) -> "list[ModelEntry]":
        """Return no names: requests need none."""
        return []

    def is_ready(self) -> bool:
        """Return whether the engine is healthy."""
        return self.version.engine.is_healthy()

    async def close(self) -> None:
        """Stop the engine."""
        await asyncio.to_thread(self.version.engine.close)
