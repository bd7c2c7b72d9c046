"""Response bodies of the generation routes: whole answers, and chunks of a stream as server-sent events."""

import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from tuneline.serve.answers.parts import Delta, ToolCall
from tuneline.serve.api.token_texts import TokenTexts, get_token_texts
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.engines.interface import Token

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


@dataclass
class Collected:
    """A complete answer."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Append the parts of a delta."""
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        self.tool_calls += delta.tool_calls
        self.tokens += delta.tokens
        self.finish = delta.finish or self.finish


@dataclass(frozen=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def body(self) -> dict[str, int]:
        """The counts in OpenAI's shape."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Format(Protocol):
    """How a route writes answers."""

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the last event of a stream with `include_usage`."""
        ...

    def whole(self, answers: list[Collected], usage: Usage) -> dict[str, Any]:
        """Return the body of a whole response."""
        ...


class _Base:
    """Fields that all responses share."""

    prefix = ""
    kind = ""
    chunk_kind = ""

    def __init__(self, version: ServedVersion, top_logprobs: int | None, include_usage: bool) -> None:
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": version.name,
            "system_fingerprint": version.fingerprint,
        }
        self.stop_ids = frozenset(version.stop_ids)
        self.top_logprobs = top_logprobs
        self.include_usage = include_usage
        self._texts: TokenTexts | None = None if top_logprobs is None else get_token_texts(version.tokenizer)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        data = {**self.head, "object": self.chunk_kind, "choices": choices}
        if self.include_usage:
            data["usage"] = usage
        return event(data)

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the last event of a stream with `include_usage`."""
        return self._chunk([], usage.body)

    def _whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage.body}

    def _visible(self, tokens: list[Token] | tuple[Token, ...]) -> list[Token]:
        """Return the tokens of the text: without the stop token."""
        return [token for token in tokens if token.finish != "stop" or token.id not in self.stop_ids]


class ChatFormat(_Base):
    """Format of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, version: ServedVersion, top_logprobs: int | None, include_usage: bool) -> None:
        super().__init__(version, top_logprobs, include_usage)
        self._started: set[int] = set()
        self._num_calls: defaultdict[int, int] = defaultdict(int)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta; the first one of a choice has the role."""
        part: dict[str, Any] = {}
        if index not in self._started:
            self._started.add(index)
            part = {"role": "assistant", "content": ""}
        if delta.content:
            part["content"] = delta.content
        if delta.reasoning:
            part["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            first = self._num_calls[index]
            self._num_calls[index] += len(delta.tool_calls)
            calls = [_format_call(call) for call in delta.tool_calls]
            part["tool_calls"] = [{"index": first + i, **call} for i, call in enumerate(calls)]
        logprobs = self._logprobs(delta.tokens) if delta.tokens else None
        return self._chunk([{"index": index, "delta": part, "logprobs": logprobs, "finish_reason": delta.finish}])

    def whole(self, answers: list[Collected], usage: Usage) -> dict[str, Any]:
        """Return the body of a whole response."""
        return self._whole([self._choice(i, answer) for i, answer in enumerate(answers)], usage)

    def _choice(self, index: int, answer: Collected) -> dict[str, Any]:
        content = "".join(answer.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(answer.reasoning):
            message["reasoning_content"] = reasoning
        if answer.tool_calls:
            message["content"] = content or None
            message["tool_calls"] = [_format_call(call) for call in answer.tool_calls]
        logprobs = self._logprobs(answer.tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish}

    def _logprobs(self, tokens: list[Token] | tuple[Token, ...]) -> dict[str, Any] | None:
        if self._texts is None:
            return None
        content = []
        for token in self._visible(tokens):
            top = [self._logprob(i, logprob) for i, logprob in token.top[: self.top_logprobs]]
            content.append({**self._logprob(token.id, token.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, logprob: float | None) -> dict[str, Any]:
        assert self._texts is not None
        text, data = self._texts.get(token)
        return {"token": text, "logprob": clip(logprob), "bytes": data}


class CompletionFormat(_Base):
    """Format of `/v1/completions`."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, version: ServedVersion, top_logprobs: int | None, include_usage: bool) -> None:
        super().__init__(version, top_logprobs, include_usage)
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta."""
        return self._chunk([self._choice(index, delta.content, delta.tokens, delta.finish)])

    def whole(self, answers: list[Collected], usage: Usage) -> dict[str, Any]:
        """Return the body of a whole response."""
        choices = [
            self._choice(i, "".join(answer.content), answer.tokens, answer.finish) for i, answer in enumerate(answers)
        ]
        return self._whole(choices, usage)

    def _choice(
        self, index: int, text: str, tokens: list[Token] | tuple[Token, ...], finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._logprobs(index, tokens), "finish_reason": finish}

    def _logprobs(self, index: int, tokens: list[Token] | tuple[Token, ...]) -> dict[str, Any] | None:
        if self._texts is None:
            return None
        texts, logprobs, top, offsets = [], [], [], []
        for token in self._visible(tokens):
            text = self._texts.get(token.id)[0]
            texts.append(text)
            logprobs.append(clip(token.logprob))
            pairs = token.top[: self.top_logprobs]
            top.append({self._texts.get(i)[0]: clip(logprob) for i, logprob in pairs} if pairs else None)
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        top_logprobs = top if self.top_logprobs else None
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": top_logprobs, "text_offset": offsets}


def clip(logprob: float | None) -> float | None:
    """Return a log-probability that JSON can hold: minus infinity becomes -9999, as in OpenAI's API."""
    return None if logprob is None else max(logprob, -9999.0)


def _format_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
