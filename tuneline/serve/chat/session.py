"""A chat session: the conversation, its parameters, and one or two models that answer."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tuneline.serve.chat import options
from tuneline.serve.chat.conversation import Conversation
from tuneline.serve.chat.interface import Answer, ChatClient, ChatDelta, ChatRequest

Show = Callable[[ChatDelta], None]
"""Displays new parts of an answer."""

OpenClient = Callable[[str], Awaitable[ChatClient]]
"""Opens the model of `/compare`; an empty name means the base model."""


@dataclass
class Session:
    """A chat with one model, or with two for comparison."""

    client: ChatClient
    open_client: OpenClient
    options: dict[str, Any] = field(default_factory=lambda: dict(options.DEFAULTS))
    conversation: Conversation = field(default_factory=Conversation)
    other: ChatClient | None = None
    """Second model, whose answers are shown but are not part of the conversation."""

    def request(self) -> ChatRequest:
        """Return the request for the next answer."""
        return ChatRequest(self.conversation.messages(), self.conversation.tools, dict(self.options))

    async def compare(self, name: str) -> None:
        """Open the second model, by default the base model.

        Raises:
            TunelineError: It cannot be opened.
        """
        opened = await self.open_client(name)
        await self.end_comparison()
        self.other = opened

    async def end_comparison(self) -> None:
        """Close the second model, if any."""
        other, self.other = self.other, None
        if other:
            await other.close()

    async def close(self) -> None:
        """Close both models."""
        await self.end_comparison()
        await self.client.close()


async def receive(client: ChatClient, request: ChatRequest, answer: Answer, show: Show) -> None:
    """Receive an answer. If the task is cancelled, the generation stops and the answer is marked as stopped.

    Raises:
        TunelineError: The request cannot be answered.
    """
    try:
        async with aclosing(client.stream(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                answer.add(delta)
                show(delta)
    except asyncio.CancelledError:
        answer.stopped = True
