"""Chat with a server: Tuneline's own, or any other with an OpenAI-compatible API."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from tuneline.errors import RecipeError, one_line
from tuneline.serve.chat import options
from tuneline.serve.chat.interface import ChatDelta, ChatError, ChatRequest, ChatToolCall, FinishReason

CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
"""A slow model may compute a long prompt for minutes before its first token."""

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
REASONING_FIELDS = ("reasoning_content", "reasoning")
MAX_ERROR_CHARS = 500


class HttpClient:
    """Chat client of a server."""

    def __init__(
        self, url: str, model: str = "", key: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """Describe the server.

        Args:
            url: Address, with or without `/v1`.
            model: Name of the model on the server.
            key: Bearer key.
            transport: Transport, for tests.

        Raises:
            RecipeError: The URL is invalid.
        """
        if not url.startswith(("http://", "https://")):
            raise RecipeError(f"--url: expected an address such as http://127.0.0.1:8000, found {url!r}. Correct it.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.AsyncClient(
            base_url=self.url, headers=headers, timeout=timeout, transport=transport, limits=limits, trust_env=False
        )
        self._sends_stream_options = True

    async def models(self) -> list[str]:
        """Return the names of the models on the server.

        Raises:
            ChatError: The server does not answer, or refuses.
        """
        async with self._send("GET", "/v1/models") as response:
            content = _parse(await response.aread())
        entries = content.get("data")
        return (
            [str(entry.get("id")) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        )

    async def select_model(self) -> None:
        """Check the model's name, or take the server's first model if none was given.

        Raises:
            ChatError: The server does not answer, or does not serve the model.
        """
        names = await self.models()
        if not self.name and names:
            self.name = names[0]
        if self.name not in names:
            known = ", ".join(names) or "none"
            raise ChatError(f"{self.url} does not serve {self.name or 'any model'}. Give one of its models: {known}.")

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """Yield the parts of the answer."""
        try:
            async with aclosing(self._stream(self._body(request))) as deltas:
                async for delta in deltas:
                    yield delta
        except ChatError as error:
            if not (self._sends_stream_options and error.status in (400, 422) and "stream_options" in str(error)):
                raise
            self._sends_stream_options = False  # the server cannot report the number of tokens
            async with aclosing(self._stream(self._body(request))) as deltas:
                async for delta in deltas:
                    yield delta

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body = {"model": self.name, "messages": request.messages, "stream": True, **options.as_request(request.options)}
        if request.tools:
            body["tools"] = request.tools
        if self._sends_stream_options:
            body["stream_options"] = {"include_usage": True}
        return body

    async def _stream(self, body: dict[str, Any]) -> AsyncGenerator[ChatDelta]:
        parts = _StreamState()
        async with (
            self._send("POST", "/v1/chat/completions", body) as response,
            aclosing(_events(response)) as events,
        ):
            async for data in events:
                if data == "[DONE]":
                    parts.is_complete = True
                    break
                yield parts.read(_parse(data))
        yield ChatDelta(tool_calls=parts.tool_calls(), num_tokens=parts.num_tokens, finish=parts.finish)
        if not (parts.is_complete or parts.finish):
            raise ChatError(f"{self.url} ended the answer before its end. Send the prompt again: /regenerate")

    async def complete(self, prompt: str, chosen: dict[str, Any]) -> tuple[str, FinishReason, int, str]:
        """Continue a text; return the continuation, what ended it, its number of tokens, and the version.

        Raises:
            ChatError: The request cannot be answered.
        """
        body = {"model": self.name, "prompt": prompt, **options.as_request(chosen)}
        async with self._send("POST", "/v1/completions", body) as response:
            content = _parse(await response.aread())
        try:
            choice, tokens = content["choices"][0], (content.get("usage") or {}).get("completion_tokens", 0)
            finish = FINISH_REASONS.get(choice.get("finish_reason") or "stop", "stop")
            return str(choice["text"]), finish, int(tokens), str(content.get("model") or self.name)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ChatError(f"{self.url} sent an unexpected completion: {content!r:.200}.") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> AsyncIterator[httpx2.Response]:
        """Send a request; leaving the block closes the connection, which stops the generation on the server."""
        try:
            async with self._http.stream(method, path, json=body) as response:
                if response.status_code != 200:
                    raise _error(self.url, response, await response.aread())
                yield response
        except httpx2.ConnectError as error:
            raise ChatError(
                f"{self.url} does not answer ({one_line(error)}) Start the server with `tuneline serve MODEL`, or "
                "correct the address."
            ) from error
        except httpx2.HTTPError as error:
            reason = one_line(error) if str(error) else f"{type(error).__name__}."
            raise ChatError(f"{self.url}: the connection failed: {reason} Send the prompt again.") from error


@dataclass
class _StreamState:
    """What the events of a stream have reported so far."""

    num_deltas: int = 0
    usage: int | None = None
    finish: FinishReason | None = None
    is_complete: bool = False

    def __post_init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    @property
    def num_tokens(self) -> int:
        """Number of tokens: as reported, or the number of events with text, which is close to it."""
        return self.num_deltas if self.usage is None else self.usage

    def read(self, event: dict[str, Any]) -> ChatDelta:
        """Return the new parts of an event.

        Raises:
            ChatError: The event reports an error.
        """
        if event.get("error"):
            raise ChatError(f"The server ended the answer: {_message(event)}")
        usage = event.get("usage") or {}
        self.usage = usage.get("completion_tokens", self.usage)
        choices = event.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        self.finish = FINISH_REASONS.get(choices[0].get("finish_reason") or "", self.finish)
        content = delta.get("content") or ""
        reasoning = next((delta[name] for name in REASONING_FIELDS if delta.get(name)), "")
        for call in delta.get("tool_calls") or []:
            self._add_call(call)
        self.num_deltas += bool(content or reasoning or delta.get("tool_calls"))
        version = event.get("model") or ""
        return ChatDelta(content, reasoning, num_tokens=self.num_tokens, version=version)

    def _add_call(self, call: dict[str, Any]) -> None:
        """Add a part of a tool call: its name comes first, its arguments in pieces."""
        parts = self._calls.setdefault(call.get("index") or 0, {"id": "", "name": "", "arguments": ""})
        function = call.get("function") or {}
        parts["id"] = call.get("id") or parts["id"]
        parts["name"] = function.get("name") or parts["name"]
        parts["arguments"] += function.get("arguments") or ""

    def tool_calls(self) -> tuple[ChatToolCall, ...]:
        """Return the tool calls in order, which are complete at the end of the stream."""
        return tuple(
            ChatToolCall(parts["name"], parts["arguments"], parts["id"]) for _, parts in sorted(self._calls.items())
        )


async def _events(response: httpx2.Response) -> AsyncGenerator[str]:
    """Yield the data of the events of a stream (server-sent events)."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _parse(text: str | bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ChatError(f"The server sent {text[:200]!r}, expected a JSON object. Is it an OpenAI-compatible server?")
    return content


def _error(url: str, response: httpx2.Response, body: bytes) -> ChatError:
    """Return the error of a response with another status than 200."""
    status = response.status_code
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode(errors="replace")
    message = _message(content)
    if status in (401, 403):
        message += " Give the key with --key, or in the environment variable TUNELINE_API_KEY."
    retry_after = response.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdecimal() else None
    if status in (429, 503) and seconds is not None:
        message += f" Send the prompt again in {seconds:.0f} s."
    return ChatError(f"{url} answers with status {status}: {message}", seconds, status)


def _message(content: Any) -> str:
    """Return the message of an error body; servers nest it differently."""
    for key in ("error", "detail", "message"):
        if isinstance(content, dict) and content.get(key):
            return _message(content[key])
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return " ".join(text.split())[:MAX_ERROR_CHARS] or "no reason given."
