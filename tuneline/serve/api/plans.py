"""From a validated body to the requests of an engine."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tuneline.errors import DataError, SourceError
from tuneline.serve.answers import grammars, prompts
from tuneline.serve.api.bodies import FIELD_NAMES, check_supported
from tuneline.serve.api.errors import bad_request
from tuneline.serve.api.front import Front, get_vocabulary_size
from tuneline.serve.api.schemas import MAX_SEED, ChatRequest, CompletionRequest, Generation, Message
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.engines.interface import GenerationRequest, Grammar, Sampling

COMPLETION_TOKENS = 16
"""Default length of an answer of `/v1/completions`, as in OpenAI's API."""

SAMPLING_FIELDS = tuple(name for name in Sampling.__dataclass_fields__ if name in Generation.model_fields)


@dataclass(frozen=True)
class Plan:
    """The answers that a request needs."""

    requests: list[GenerationRequest]
    """One per choice: `n` for the first prompt, then `n` for the second one."""

    prompt_tokens: int
    stop: list[str] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    """Tools whose calls are parsed."""

    parse_reasoning: bool = False
    """Whether thinking blocks are parsed; in text completions they are text."""


async def plan_chat(front: Front, version: ServedVersion, body: ChatRequest) -> Plan:
    """Return the plan of a chat request."""
    check_supported(body, version.engine)
    tools = None if body.tool_choice == "none" or not body.tools else [dump(tool) for tool in body.tools]
    size = sum(len(message.text()) for message in body.messages)
    kwargs = body.chat_template_kwargs or {}
    ids = await front.encode(size, lambda: encode_messages(version, body.messages, tools, kwargs))
    limit = find_limit(front, version, ids, body.max_completion_tokens or body.max_tokens, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = find_grammar(version, body, tools, ids)
    requests = [build_request(version, body, ids, limit, logprobs, grammar, i) for i in range(body.n or 1)]
    return Plan(requests, len(ids), body.stop_strings, tools, parse_reasoning=True)


async def plan_completion(front: Front, version: ServedVersion, body: CompletionRequest) -> Plan:
    """Return the plan of a completion request."""
    check_supported(body, version.engine)
    grammar = find_grammar(version, body, None, None)
    requests: list[GenerationRequest] = []
    prompt_tokens = 0
    for prompt in body.prompts:
        ids = prompt if isinstance(prompt, list) else await encode_text(front, version, prompt)
        limit = find_limit(front, version, ids, body.max_tokens or COMPLETION_TOKENS, "prompt")
        prompt_tokens += len(ids)
        choices = range(len(requests), len(requests) + (body.n or 1))
        requests += [build_request(version, body, ids, limit, body.logprobs, grammar, i) for i in choices]
    return Plan(requests, prompt_tokens, body.stop_strings)


def check_choices(front: Front, version: ServedVersion, number: int, param: str) -> None:
    """Raise an error if a request wants too many answers, or an answer of a model that does not generate."""
    if number > front.settings.max_choices:
        message = f"The request needs {number} answers; at most {front.settings.max_choices} are allowed. Send fewer."
        raise bad_request(message, param, "invalid_value")
    if version.is_reward_model:
        message = f"{version.name} is a reward model: it does not generate text. Use /v1/score."
        raise bad_request(message, "model", "unsupported_model")


def encode_messages(
    version: ServedVersion,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    template_kwargs: dict[str, Any],
) -> list[int]:
    """Return the token ids of a conversation, rendered with the chat template of the version."""
    plain = [message.plain() for message in messages]
    with prompt_errors("messages"):
        return prompts.encode_chat(version.tokenizer, plain, tools, template_kwargs)


@contextmanager
def prompt_errors(param: str) -> Iterator[None]:
    """Convert errors of a template or a conversation to errors of the request."""
    try:
        yield
    except (DataError, SourceError) as error:
        path = re.match(r"[a-z_]+(\[\d+\]|\.[a-z_]+)*", str(error))
        is_field = path is not None and re.split(r"[.\[]", path.group())[0] in FIELD_NAMES
        raise bad_request(str(error), path.group() if path and is_field else param, "invalid_prompt") from error


async def encode_text(front: Front, version: ServedVersion, text: str, add_special_tokens: bool = True) -> list[int]:
    """Return the token ids of a text; special tokens are those that start a prompt."""
    tokenizer = version.tokenizer

    def encode() -> list[int]:
        if add_special_tokens:
            with prompt_errors("prompt"):
                return prompts.encode_text(tokenizer, text)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return await front.encode(len(text), encode)


def find_limit(front: Front, version: ServedVersion, ids: list[int], wanted: int | None, param: str) -> int:
    """Return the maximum number of tokens of the answer."""
    allowed = front.settings.max_tokens
    if wanted is not None and allowed is not None and wanted > allowed:
        message = f"max_tokens is {wanted}; this server generates at most {allowed} tokens per answer. Lower it."
        raise bad_request(message, "max_tokens", "invalid_value")
    front.check_prompt(ids, version, param, new_tokens=wanted or 1)
    rest = version.engine.max_length - len(ids)
    return wanted or min(rest, allowed or rest)


def find_grammar(
    version: ServedVersion, body: Generation, tools: list[dict[str, Any]] | None, prompt_ids: list[int] | None
) -> Grammar | None:
    """Return the grammar of the answer; the prompt of a chat may have opened a thinking block."""
    response_format = dump(body.response_format) if body.response_format is not None else None
    choice: Any = getattr(body, "tool_choice", None)
    tool_choice = dump(choice) if choice is not None and not isinstance(choice, str) else choice
    if response_format is None and tool_choice in (None, "auto", "none"):
        return None
    try:
        return grammars.grammar_for(response_format, tools, tool_choice, version.tokenizer, prompt_ids=prompt_ids)
    except ValueError as error:
        param = "response_format" if tool_choice in (None, "auto", "none") else "tool_choice"
        raise bad_request(f"{str(error).rstrip('.')}.", param, "invalid_value") from error


def build_request(
    version: ServedVersion,
    body: Generation,
    ids: list[int],
    max_tokens: int,
    top_logprobs: int | None,
    grammar: Grammar | None,
    index: int,
) -> GenerationRequest:
    """Return the engine's request for one choice. Choice `i` uses `seed + i`, else all choices were equal."""
    values = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    if values.get("top_k") == -1:
        values["top_k"] = 0
    if "seed" in values:
        values["seed"] = (values["seed"] + index) & MAX_SEED
    if "logit_bias" in values:
        values["logit_bias"] = read_bias(version, values["logit_bias"])
    return GenerationRequest(
        prompt_ids=ids,
        max_tokens=max_tokens,
        sampling=Sampling(**values),
        stop_ids=version.stop_ids,
        top_logprobs=top_logprobs,
        grammar=grammar,
        adapter=version.adapter,
    )


def read_bias(version: ServedVersion, bias: dict[str, float]) -> dict[int, float]:
    """Return the bias by token id."""
    size = get_vocabulary_size(version)
    outside = next((key for key in bias if int(key) >= size), None)
    if outside is not None:
        message = f"'logit_bias' has the token id {outside}; the vocabulary has {size} tokens. Correct it."
        raise bad_request(message, "logit_bias", "invalid_value")
    return {int(key): value for key, value in bias.items()}


def dump(part: Any) -> dict[str, Any]:
    """Return a part of a body as it was sent, without the fields that were not."""
    fields: dict[str, Any] = part.model_dump(by_alias=True, exclude_unset=True)
    return fields
