"""Chat with a model in this process: the prompt is encoded and the answer parsed as on a server."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from tuneline.serve.answers.parts import Delta
from tuneline.serve.chat import options
from tuneline.serve.chat.interface import ChatDelta, ChatError, ChatRequest, ChatToolCall, Message
from tuneline.serve.deploy.interface import Deployment, ServedVersion
from tuneline.serve.engines.interface import GenerationRequest, Token

Encode = Callable[[ServedVersion, list[Message], list[dict[str, Any]], dict[str, Any]], list[int]]
"""(version, messages, tools, template arguments) -> prompt ids."""


class Parser(Protocol):
    """Turns tokens into parts of an answer."""

    def feed(self, token: Token) -> Delta | None:
        """Return the parts that are certain now, if any."""
        ...


MakeParser = Callable[[ServedVersion, list[int], list[str], list[dict[str, Any]]], Parser]
"""(version, prompt ids, stop strings, tools) -> parser of one answer."""

MAX_TOKENS = 1024
"""Maximum number of tokens of an answer, unless the chat or the settings of the model set another."""


class InProcessClient:
    """Chat client of a deployment in this process."""

    def __init__(self, deployment: Deployment, model: str, name: str, encode: Encode, make_parser: MakeParser) -> None:
        """Describe the client.

        Args:
            deployment: Holds the model.
            model: Name of the model in the deployment; empty for its default.
            name: Name for headings.
            encode: Renders and encodes prompts.
            make_parser: Creates the parser of an answer.
        """
        self.name = name
        self._deployment, self._model = deployment, model
        self._encode, self._make_parser = encode, make_parser

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """Yield the parts of the answer."""
        async with self._deployment.acquire(self._model) as version:
            chosen = _with_defaults(version, request.options)
            arguments = options.template_arguments(chosen)
            ids = self._encode(version, _with_system(version, request.messages), request.tools, arguments)
            generation = _generation_request(version, ids, chosen)
            parser = self._make_parser(version, ids, chosen.get("stop", []), request.tools)
            num_tokens = 0
            async with aclosing(version.engine.generate(generation)) as tokens:  # type: ignore[type-var]
                async for token in tokens:
                    num_tokens += 1
                    delta = parser.feed(token)
                    if delta is not None:
                        yield _chat_delta(delta, num_tokens, version.name)
                        if delta.finish:
                            return

    async def close(self) -> None:
        """Stop the engines."""
        await self._deployment.close()


def _with_defaults(version: ServedVersion, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request with those that the settings or the generation config of the model set."""
    defaults = version.defaults
    variables = {f"{options.TEMPLATE_PREFIX}{name}": value for name, value in defaults.chat_template_kwargs.items()}
    return {"max_tokens": defaults.max_tokens or MAX_TOKENS, **defaults.sampling, **variables, **chosen}


def _with_system(version: ServedVersion, messages: list[Message]) -> list[Message]:
    """Return the messages with the system message of the settings, if they have none."""
    system = version.defaults.system
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _generation_request(version: ServedVersion, ids: list[int], chosen: dict[str, Any]) -> GenerationRequest:
    """Build the request for the engine.

    Raises:
        ChatError: The prompt is too long, or the engine cannot honor a parameter.
    """
    if refused := sorted(version.engine.unsupported & chosen.keys()):
        raise ChatError(
            f"The engine {version.engine.name} does not support {refused[0]}. Reset it: /params {refused[0]}="
        )
    room = version.engine.max_length - len(ids)
    if room < 1:
        raise ChatError(
            f"The conversation has {len(ids)} tokens, and the model holds {version.engine.max_length} with the answer. "
            "Shorten it: /undo or /reset."
        )
    return GenerationRequest(
        prompt_ids=ids,
        max_tokens=min(chosen["max_tokens"], room),
        sampling=options.sampling(chosen),
        stop_ids=version.stop_ids,
        adapter=version.adapter,
    )


def _chat_delta(delta: Delta, num_tokens: int, version: str) -> ChatDelta:
    calls = tuple(ChatToolCall(call.name, call.arguments) for call in delta.tool_calls)
    return ChatDelta(delta.content, delta.reasoning, calls, num_tokens, delta.finish, version)
