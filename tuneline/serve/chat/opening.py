"""Open the model of a chat: on a server, or in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuneline.errors import RecipeError
from tuneline.serve.chat import options
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import ChatClient
from tuneline.serve.chat.session import Session

if TYPE_CHECKING:  # imports transformers, which a chat with a server does not need
    from tuneline.config.sections.serve import ServeConfig
    from tuneline.serve.chat.in_process import InProcessClient
    from tuneline.serve.deploy.interface import ModelEntry, ServedVersion
    from tuneline.serve.deploy.located import LocatedModel

BASE_MODEL_PARAMS = ("model.path", "model.name", "model.repo_id")
"""Parameters of a run that name its base model: a folder, a catalogue name, or a Hub repository."""

ReadConfig = Callable[[str], "ServeConfig"]
"""Returns the settings of a model argument: of a name, a folder, or a YAML file."""


async def open_server(url: str, model: str, key: str | None) -> Session:
    """Open a session with a server.

    Raises:
        ChatError: The server does not answer, or does not serve the model.
    """

    async def connect(name: str) -> ChatClient:
        client = HttpClient(url, name, key)
        try:
            await client.select_model()
        except BaseException:
            await client.close()
            raise
        return client

    async def open_other(name: str) -> ChatClient:
        if not name:
            raise RecipeError("The base model of a model on a server is not known. Name a model of the server.")
        return await connect(name)

    return Session(await connect(model), open_other)


async def open_local(model: str, read_config: ReadConfig) -> Session:
    """Load a model into this process, and open a session with it.

    Raises:
        TunelineError: The model does not exist, or cannot be loaded.
    """
    loaded = await asyncio.to_thread(load, read_config(model))

    async def open_other(name: str) -> ChatClient:
        if not name and loaded.version.adapter is not None:
            return loaded.base_client()
        config = read_config(name or base_model(loaded.located))
        return (await asyncio.to_thread(load, config)).client()

    chosen = {} if loaded.version.defaults.sampling else dict(options.DEFAULTS)
    return Session(loaded.client(), open_other, chosen)


@dataclass(frozen=True)
class LoadedModel:
    """A model in this process."""

    version: "ServedVersion"
    located: "LocatedModel"

    def client(self) -> "InProcessClient":
        """Return a client that frees the model when it is closed."""
        return _client(FixedDeployment(self.version, self.located))

    def base_client(self) -> "InProcessClient":
        """Return a client of the model without its adapter, which shares the weights."""
        base = replace(self.version, name=self.located.base_name, adapter=None)
        return _client(FixedDeployment(base))


def _client(deployment: "FixedDeployment") -> "InProcessClient":
    from tuneline.serve.chat import parts
    from tuneline.serve.chat.in_process import InProcessClient

    return InProcessClient(deployment, "", deployment.version.name, parts.encode, parts.make_parser)


def locate(config: "ServeConfig") -> "LocatedModel":
    """Find a model, with the registry of the active stack if its name needs one.

    Raises:
        RecipeError: It is a reward model, which does not answer.
        TunelineError: It does not exist, or is damaged.
    """
    from tuneline.serve.deploy import locate as finder
    from tuneline.serve.deploy import names

    if names.is_registered(config):
        from tuneline.zenml_integration import tracker

        tracker.connect()
    located = finder.locate(config)
    if located.is_reward_model:
        raise RecipeError(f"{located.name} is a reward model, which scores answers. Give a model that writes answers.")
    return located


def load(config: "ServeConfig") -> LoadedModel:
    """Load a model, and compare its prompts with those of its training.

    Raises:
        TunelineError: It does not exist, is damaged, cannot be loaded, or its prompts differ.
    """
    from tuneline.serve.deploy.prepare import Preparation

    located = locate(config)
    try:
        version, _ = Preparation(config).load(located)
    except BaseException:
        located.discard()
        raise
    if located.adapter is not None:
        version = replace(version, name=located.name, adapter=located.adapter)
    return LoadedModel(version, located)


def base_model(located: "LocatedModel") -> str:
    """Return the name of the model that a model was trained from, as a model argument.

    Raises:
        RecipeError: It is not known.
    """
    from tuneline.model import adapter_bundle

    if located.version and located.version.run_id:
        import mlflow

        recipe = mlflow.MlflowClient().get_run(located.version.run_id).data.params
        if name := next((recipe[key] for key in BASE_MODEL_PARAMS if key in recipe), ""):
            return str(name)
    if adapter_bundle.is_adapter_bundle(located.folder):
        return str(located.folder / adapter_bundle.BASE_FOLDER)
    raise RecipeError(f"The base model of {located.name} is not recorded. Name it: /compare MODEL")


class FixedDeployment:
    """A deployment with one version, which never changes."""

    def __init__(self, version: "ServedVersion", located: "LocatedModel | None" = None) -> None:
        """Describe the deployment.

        Args:
            version: The version.
            located: Its files; None if another deployment frees the model.
        """
        self.version, self._located = version, located

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
        """Free the model."""
        if self._located is not None:
            await asyncio.to_thread(self.version.engine.close)
            self._located.discard()
