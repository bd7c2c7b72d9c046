"""Answers of a server: several requests at the same time, results in the order of the rows."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tuneline.data.align.prompts import PromptRow
from tuneline.data.chat_template import render
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import Answer, ChatError, ChatRequest
from tuneline.serve.chat.session import receive
from tuneline.serve.predict.job import GenerationSettings, Prediction

WINDOW = 4
"""Rows that are sent before the oldest answer arrives, as a multiple of the number of requests at the same time."""

RETRIED_STATUS = (None, 408, 429, 500, 502, 503, 504)
"""Statuses after which a request is sent again; None: the connection failed."""

REFUSED_ROW_STATUS = (400, 413, 422)
"""Statuses that concern one row only."""

MAX_TRIES, FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 8, 1.0, 60.0

Outcome = Prediction | ChatError
"""The answer to a row, or the reason why the server refuses this row."""


async def answers(
    client: HttpClient, rows: Sequence[PromptRow], concurrency: int, settings: GenerationSettings
) -> AsyncIterator[list[tuple[PromptRow, Outcome]]]:
    """Yield the outcomes of consecutive rows as soon as they are there.

    Raises:
        ChatError: The server does not answer after several tries, or refuses all requests.
    """
    slots = asyncio.Semaphore(concurrency)
    pending: deque[tuple[PromptRow, asyncio.Task[Outcome]]] = deque()
    waiting = deque(rows)
    try:
        while pending or waiting:
            while waiting and len(pending) < concurrency * WINDOW:
                row = waiting.popleft()
                pending.append((row, asyncio.create_task(_outcome(client, row, slots, settings))))
            await pending[0][1]
            finished = []
            while pending and pending[0][1].done():
                row, task = pending.popleft()
                finished.append((row, task.result()))
            yield finished
    finally:
        for _, task in pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in pending), return_exceptions=True)


async def _outcome(
    client: HttpClient, row: PromptRow, slots: asyncio.Semaphore, settings: GenerationSettings
) -> Outcome:
    """Return the answer to a row, or the error of a row that the server refuses; other errors are tried again.

    Raises:
        ChatError: The last try failed, or the server refuses all requests.
    """
    wait = FIRST_WAIT_SECONDS
    for number in range(1, MAX_TRIES + 1):
        try:
            async with slots:
                return await _answer(client, row, settings)
        except ChatError as error:
            if error.status in REFUSED_ROW_STATUS:
                return error
            if error.status not in RETRIED_STATUS or number == MAX_TRIES:
                raise
            await asyncio.sleep(min(error.retry_after or wait, MAX_WAIT_SECONDS))
            wait *= 2
    raise AssertionError("unreachable")


async def _answer(client: HttpClient, row: PromptRow, settings: GenerationSettings) -> Prediction:
    options = settings.as_options()
    if row.text:
        text, finish, tokens, version = await client.complete(row.text, options)
        return Prediction(text, finish, tokens, version)
    answer = Answer()
    await receive(client, ChatRequest(_messages(row), _tools(row), options), answer, lambda delta: None)
    if answer.stopped:
        raise asyncio.CancelledError
    calls = tuple({"name": call.name, "arguments": call.arguments} for call in answer.tool_calls)
    version = answer.version or client.name
    finish = answer.finish or "stop"
    return Prediction(answer.content, finish, answer.num_tokens or 0, version, calls, answer.reasoning)


def _tools(row: PromptRow) -> list[dict[str, Any]]:
    import json

    return list(json.loads(row.tools)) if row.tools else []


def _messages(row: PromptRow) -> list[dict[str, Any]]:
    """Return the messages in the format of the API, in which calls and their results have ids."""
    messages = []
    num_calls = num_results = 0
    for message in row.messages:
        sent = render.to_template_message(message, arguments_as_text=True)
        for call in sent.get("tool_calls", []):
            num_calls += 1
            call["id"] = f"call_{num_calls}"
        if message["role"] == "tool":
            num_results = min(num_results + 1, num_calls)
            sent["tool_call_id"] = f"call_{num_results}"
        messages.append(sent)
    return messages
