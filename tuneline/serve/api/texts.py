"""Routes that do not generate: embeddings, scores of reward models, tokens."""

import asyncio
import base64
import secrets
import sys
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tuneline.serve.api.errors import bad_request
from tuneline.serve.api.front import Front
from tuneline.serve.api.plans import dump, encode_messages, encode_text
from tuneline.serve.api.record import Record
from tuneline.serve.api.schemas import Message
from tuneline.serve.api.text_schemas import EmbeddingRequest, ScoreEvaluationRequest, ScoreRequest, TokenizeRequest
from tuneline.serve.deploy.interface import ServedVersion

CONCURRENT_TEXTS = 8
"""Texts of one request that the engine computes at the same time."""

T = TypeVar("T")


async def embed(front: Front, record: Record, body: EmbeddingRequest) -> dict[str, Any]:
    """Return the embeddings of texts."""
    check_number(front, len(body.inputs), "input")
    async with front.acquire(body.model, record) as version:
        check_route(version, "embeddings")
        front.check_queue(version.engine)
        rows = [ids if isinstance(ids, list) else await encode_text(front, version, ids) for ids in body.inputs]
        check_rows(front, record, version, rows, "input")
        vectors = await compute_all(rows, version.engine.embed)
    data = [
        {"object": "embedding", "index": i, "embedding": format_vector(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    head = {"object": "list", "model": version.name, "system_fingerprint": version.fingerprint}
    return {**head, "data": data, "usage": count_usage(record)}


async def score(front: Front, record: Record, body: ScoreRequest) -> dict[str, Any]:
    """Return the rewards of conversations and texts."""
    check_number(front, len(body.inputs), "input")
    param = "input" if body.messages is None else "messages"
    async with front.acquire(body.model, record) as version:
        check_route(version, "score")
        front.check_queue(version.engine)
        rows = [await encode_scored(front, version, item, body.chat_template_kwargs) for item in body.inputs]
        check_rows(front, record, version, rows, param)
        scores = await compute_all(rows, version.engine.score)
    head = {"id": f"score-{secrets.token_hex(12)}", "object": "score", "model": version.name}
    return {**head, "system_fingerprint": version.fingerprint, "scores": scores, "usage": count_usage(record)}


async def score_texts(front: Front, record: Record, body: ScoreEvaluationRequest) -> dict[str, Any]:
    """Return the rewards of rendered texts, in the shape of LlamaFactory."""
    check_number(front, len(body.messages), "messages")
    async with front.acquire(body.model, record) as version:
        check_route(version, "score")
        front.check_queue(version.engine)
        rows = [await encode_text(front, version, text, add_special_tokens=False) for text in body.messages]
        length = min(body.max_length or version.engine.max_length, version.engine.max_length)
        rows = [row[:length] for row in rows]
        check_rows(front, record, version, rows, "messages")
        scores = await compute_all(rows, version.engine.score)
    head = {"id": f"scoreval-{secrets.token_hex(12)}", "object": "score.evaluation"}
    return {**head, "model": version.name, "scores": scores}


async def tokenize(front: Front, record: Record, body: TokenizeRequest) -> dict[str, Any]:
    """Return the token ids of a text or a conversation."""
    async with front.acquire(body.model, record) as version:
        if body.text is not None:
            ids = await encode_text(front, version, body.text, add_special_tokens=body.add_special_tokens)
        else:
            ids = await encode_chat(front, version, body)
        record.prompt_tokens = len(ids)
        answer = {"model": version.name, "count": len(ids), "max_length": version.engine.max_length, "ids": ids}
        if body.return_token_strings:
            answer["tokens"] = version.tokenizer.convert_ids_to_tokens(ids)
    return answer


async def encode_chat(front: Front, version: ServedVersion, body: TokenizeRequest) -> list[int]:
    """Return the token ids of a conversation as `/v1/chat/completions` renders it."""
    messages, kwargs = body.messages or [], body.chat_template_kwargs or {}
    tools = [dump(tool) for tool in body.tools] if body.tools else None
    return await front.encode(count_characters(messages), lambda: encode_messages(version, messages, tools, kwargs))


async def encode_scored(
    front: Front, version: ServedVersion, item: str | list[Message], template_kwargs: dict[str, Any] | None
) -> list[int]:
    """Return the token ids of a rendered text, or of a conversation as reward models are trained on it.

    A row of the training is the prompt for generation, the answer and the stop token.
    """
    if isinstance(item, str):
        return await encode_text(front, version, item, add_special_tokens=False)
    answer = item[-1]
    if answer.role != "assistant" or not answer.text() or len(item) < 2:
        message = "A scored conversation is a prompt and, as its last message, a text of the role 'assistant'. Add it."
        raise bad_request(message, "messages", "invalid_value")
    kwargs, size = template_kwargs or {}, count_characters(item)
    prompt = await front.encode(size, lambda: encode_messages(version, item[:-1], None, kwargs))
    ids = await encode_text(front, version, answer.text(), add_special_tokens=False)
    return [*prompt, *ids, version.tokenizer.eos_token_id]


def count_characters(messages: list[Message]) -> int:
    """Return the number of characters of a conversation."""
    return sum(len(message.text()) for message in messages)


def check_number(front: Front, number: int, param: str) -> None:
    """Raise an error if a request has too many texts."""
    if number > front.settings.max_inputs:
        message = f"{param!r} has {number} texts; at most {front.settings.max_inputs} are allowed. Send fewer."
        raise bad_request(message, param, "invalid_value")


def check_route(version: ServedVersion, route: str) -> None:
    """Raise an error if the version cannot answer this route."""
    if route in version.engine.unsupported:
        message = f"The engine {version.engine.name} does not support {route!r}. Serve with another engine."
        raise bad_request(message, "model", "unsupported_model")
    if route == "score" and not version.is_reward_model:
        message = f"{version.name} is not a reward model, so it has no scores. Name a reward model."
        raise bad_request(message, "model", "unsupported_model")


def check_rows(front: Front, record: Record, version: ServedVersion, rows: list[list[int]], param: str) -> None:
    """Raise an error if a text does not fit, and count the tokens."""
    for i, row in enumerate(rows):
        front.check_prompt(row, version, f"{param}[{i}]" if len(rows) > 1 else param)
    record.prompt_tokens = sum(len(row) for row in rows)


async def compute_all(rows: list[list[int]], function: Callable[[list[int]], Awaitable[T]]) -> list[T]:
    """Return the results of a function for all rows; the others are cancelled when one fails."""
    slots = asyncio.Semaphore(CONCURRENT_TEXTS)

    async def compute(row: list[int]) -> T:
        async with slots:
            return await function(row)

    tasks = [asyncio.ensure_future(compute(row)) for row in rows]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def format_vector(vector: list[float], encoding: str | None) -> list[float] | str:
    """Return an embedding as numbers, or as base64 of little-endian 32-bit floats."""
    if encoding != "base64":
        return vector
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()


def count_usage(record: Record) -> dict[str, int]:
    """Return the token counts of a request without an answer."""
    return {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}
