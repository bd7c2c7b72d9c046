"""Interface of chat clients: messages in, parts of an answer out."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tuneline.errors import TunelineError

Message = dict[str, Any]
"""A message in the format of the OpenAI API."""

FinishReason = Literal["stop", "length", "tool_calls"]


class ChatError(TunelineError):
    """A request cannot be answered; the session continues.

    `retry_after` is the number of seconds after which the server accepts the request again, if it said so.
    """

    def __init__(self, message: str, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after, self.status = retry_after, status


@dataclass(frozen=True)
class ChatToolCall:
    """A complete tool call."""

    name: str
    arguments: str
    """Arguments as JSON text."""

    id: str = ""


@dataclass(frozen=True)
class ChatDelta:
    """New parts of an answer."""

    content: str = ""
    reasoning: str = ""
    """Text of a thinking block, without its tags."""

    tool_calls: tuple[ChatToolCall, ...] = ()
    num_tokens: int | None = None
    """Number of tokens of the answer so far, if known."""

    finish: FinishReason | None = None
    version: str = ""
    """Name of the version that answers."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that the model continues."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """JSON schemas of the tools."""

    options: dict[str, Any] = field(default_factory=dict)
    """Generation parameters by the names of the OpenAI API, see `options`."""


class ChatClient(Protocol):
    """A model that answers chats, in this process or on a server."""

    name: str
    """Name of the model for headings."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """Yield the parts of the answer. Closing the iterator stops the generation.

        Raises:
            ChatError: The request cannot be answered.
        """
        ...

    async def close(self) -> None:
        """Free the model or the connection."""
        ...


@dataclass
class Answer:
    """An answer that is assembled from its parts."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ChatToolCall] = field(default_factory=list)
    num_tokens: int | None = None
    finish: FinishReason | None = None
    version: str = ""
    stopped: bool = False
    """The user stopped the answer before its end."""

    first_seconds: float | None = None
    """Seconds until the first part."""

    seconds: float = 0.0
    _begin: float = field(default_factory=time.perf_counter, repr=False)

    def add(self, delta: ChatDelta) -> None:
        """Add new parts."""
        self.seconds = time.perf_counter() - self._begin
        if self.first_seconds is None and (delta.content or delta.reasoning or delta.tool_calls):
            self.first_seconds = self.seconds
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.tool_calls += delta.tool_calls
        self.num_tokens = delta.num_tokens if delta.num_tokens is not None else self.num_tokens
        self.finish = delta.finish or self.finish
        self.version = delta.version or self.version

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep in the conversation."""
        return not (self.content.strip() or self.reasoning.strip() or self.tool_calls)

    def summary(self) -> str:
        """Return version, number of tokens, speed and end of the answer on one line."""
        parts = [self.version] if self.version else []
        if self.num_tokens:
            rate = f", {self.num_tokens / self.seconds:.1f} tokens/s" if self.seconds else ""
            parts.append(f"{self.num_tokens} tokens{rate}")
        if self.first_seconds is not None:
            parts.append(f"first after {self.first_seconds:.2f} s")
        if self.stopped:
            parts.append("stopped")
        elif self.finish == "length":
            parts.append("ended by max_tokens")
        return " · ".join(parts)


def format_tool_call(call: ChatToolCall) -> str:
    """Return a tool call as text: `get_weather(city="Paris")`, or its JSON text if its arguments are not an object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        return f"{call.name}({call.arguments})"
    pairs = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{call.name}({', '.join(pairs)})"
