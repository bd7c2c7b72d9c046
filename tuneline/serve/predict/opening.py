"""Open the model of a prediction."""

import asyncio
from collections.abc import Callable
from functools import partial

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.config.sections.serve import ServeConfig
from tuneline.model import precision
from tuneline.serve.chat import opening
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.predict.job import ModelIdentity
from tuneline.serve.predict.local import LocalModelAnswers


def open_local(config: ServeConfig) -> tuple[Callable[[], LocalModelAnswers], ModelIdentity]:
    """Find a model; return a function that loads it, and its identity.

    Raises:
        TunelineError: It does not exist, or is not supported.
    """
    located = opening.locate(config)
    dtype = precision.inference_dtype(config.dtype)
    options = ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)
    identity = ModelIdentity(located.name, located.content_hash, dtype=str(dtype).removeprefix("torch."))
    return partial(LocalModelAnswers.load, located, dtype, options), identity


def open_server(url: str, model: str, key: str | None) -> tuple[HttpClient, ModelIdentity]:
    """Check that a server has a model, by default its first one.

    Raises:
        ChatError: The server does not answer, or does not serve the model.
    """

    async def select() -> str:
        client = HttpClient(url, model, key)
        try:
            await client.select_model()
            return client.name
        finally:
            await client.close()

    name = asyncio.run(select())
    client = HttpClient(url, name, key)
    return client, ModelIdentity(name, url=client.url)
