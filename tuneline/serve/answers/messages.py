"""Converts messages of the OpenAI API to the messages that chat templates and training use."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.align.formats import chat, tool_calls
from tuneline.data.schema import Message, message
from tuneline.errors import DataError, did_you_mean
from tuneline.serve.answers import probes

ROLES = ("system", "developer", "user", "assistant", "tool")
KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id", "name", "refusal", "annotations"))
"""Keys of a message. A name and the id of a call only link messages, and training drops them."""

FUNCTION_NAME = re.compile(r"[\w.-]{1,64}")
"""Names of functions, as in the OpenAI API."""


class PromptError(DataError):
    """A request has no prompt: its messages are malformed, or the chat template refuses them."""


def read_messages(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """Convert messages.

    Raises:
        PromptError: A message is malformed, or has content other than text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise PromptError(f"messages must be a list of at least one message, got {messages!r:.60}.")
    template = probes.template_text(tokenizer)
    return [_read(turn, f"messages[{i}]", template) for i, turn in enumerate(messages)]


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Convert the tools of a request to JSON text; the order of keys is kept, as templates write them in that order.

    Raises:
        PromptError: A tool is not a function with a name.
    """
    for i, tool in enumerate(tools or ()):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
        if kind != "function":
            raise PromptError(f"tools[{i}].type must be 'function', got {kind!r:.60}.")
    try:
        return tool_calls.normalize_tools(list(tools or ()))
    except DataError as error:
        raise PromptError(f"tools: {error}") from None


def _read(turn: Mapping[str, Any], where: str, template: str) -> Message:
    role = _role(turn, where)
    _check_keys(turn, role, where)
    if role == "developer" and not re.search(r"['\"]developer['\"]", template):
        role = "system"
    calls = turn.get("tool_calls")
    text = _text(turn.get("content"), where, is_optional=role == "assistant" and bool(calls or turn.get("refusal")))
    try:
        normalized = tool_calls.normalize_tool_calls(calls) if calls else None
    except DataError as error:
        raise PromptError(f"{where}.tool_calls: {error}") from None
    converted = message(role, text or str(turn.get("refusal") or ""), normalized)
    thoughts = next((turn[key] for key in chat.THINKING_KEYS if turn.get(key)), "")
    if not isinstance(thoughts, str):
        raise PromptError(f"{where}.reasoning_content must be a text, got {thoughts!r:.60}.")
    return _with_thoughts(converted, thoughts, template) if thoughts and role == "assistant" else converted


def _role(turn: Any, where: str) -> str:
    role = turn.get("role") if isinstance(turn, Mapping) else None
    if role in ROLES:
        return str(role)
    hint = did_you_mean(role, ROLES) if isinstance(role, str) else ""
    raise PromptError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.60}.{hint}")


def _check_keys(turn: Mapping[str, Any], role: str, where: str) -> None:
    for key, value in turn.items():
        if value and key not in KEYS and key not in chat.THINKING_KEYS:
            raise PromptError(f"{where}.{key} is not supported. Remove it.")
    if turn.get("tool_calls") and role != "assistant":
        raise PromptError(f"{where}.tool_calls must be in a message of the assistant, got one of {role}.")


def _text(content: Any, where: str, *, is_optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if is_optional:
            return ""
        raise PromptError(f"{where}.content is missing; it must be a text, or a list of text parts.")
    if not isinstance(content, list):
        raise PromptError(f"{where}.content must be a text, or a list of text parts, got {content!r:.60}.")
    return "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "refusal"):
        raise PromptError(f"{where} has the type {kind!r:.60}, and this model reads text only. Send a text part.")
    text = part.get(kind)
    if not isinstance(text, str):
        raise PromptError(f"{where}.{kind} must be a text, got {text!r:.60}.")
    return text


def _with_thoughts(converted: Message, thoughts: str, template: str) -> Message:
    """Add thoughts of an earlier answer in the form that the template reads.

    A template that mentions none does not render them, like those of thinking models, which remove earlier thoughts.
    """
    key = next((key for key in chat.THINKING_KEYS if re.search(rf"(\.|\[['\"]){key}\b", template)), None)
    if key:
        return {**converted, key: thoughts}  # type: ignore[misc]
    tags = next((pair for pair in probes.KNOWN_THINKING_TAGS if pair[1] in template), None)
    if tags:
        converted["content"] = f"{tags[0]}\n{thoughts}\n{tags[1]}\n\n{converted['content']}"
    return converted
