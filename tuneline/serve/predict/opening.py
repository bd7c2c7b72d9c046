"""Open the model of a prediction."""

import asyncio
from collections.abc import Callable
from functools import partial

from tuneline.errors import RecipeError
from tuneline.model import precision, value_head
from tuneline.serve.chat import models
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.predict.job import ModelIdentity
from tuneline.serve.predict.local import LocalModelAnswers


def open_local(text: str, dtype: str = "auto") -> tuple[Callable[[], LocalModelAnswers], ModelIdentity]:
    """Find a model; return a function that loads it, and its identity.

    Raises:
        TunelineError: It does not exist, or is not supported.
    """
    model = models.open_model(text)
    if (model.folder / value_head.HEAD_FILE).is_file():
        raise RecipeError(f"{model.name} is a reward model, which scores answers. Give a model that writes answers.")
    weights = precision.inference_dtype(dtype)
    identity = ModelIdentity(model.name, model.content_hash, dtype=str(weights).removeprefix("torch."))
    return partial(LocalModelAnswers.load, model.folder, model.name, weights, model.options), identity


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
