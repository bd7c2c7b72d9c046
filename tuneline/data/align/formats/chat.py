"""Chat turns: converts turns in any common notation to messages.

A turn is `{"from", "value"}` or `{"role", "content"}`. `tool_call_id` and `name` only link a result to the call before
it, and are dropped.

A loss switch sets whether a turn has loss. All common names are supported: `train` and `training` (axolotl's
`message_field_training`, docs/dataset-formats/conversation.qmd and its tests), `weight` 0 or 1 (OpenAI's fine-tuning
format), `loss` (ms-swift; AgentGym's trajectories, Xi et al. 2024, arXiv:2406.04151), `train_on_turn` (home-llm).
`mask` is not supported: true means loss in some datasets, and no loss in others.
"""

from functools import lru_cache
from typing import Any, Literal

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields, tool_calls
from tuneline.data.align.formats.base import Record
from tuneline.data.schema import Message, message
from tuneline.errors import DataError, did_you_mean

TOOL_CALL = "call"
"""Role of a turn that only calls a function; it becomes an assistant message."""

OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
PAPER_ROLES = {**OPENAI_ROLES, "function": TOOL_CALL, "observation": "tool"}
COMMON_ROLES = {
    "system": ("system", "sys", "developer"),
    "user": ("human", "user", "usr", "prompter", "customer"),
    "assistant": ("assistant", "gpt", "gpt4", "gpt-4", "chatgpt", "bot", "chatbot", "model", "bing", "bard", "claude"),
    "tool": ("tool", "observation", "function_response", "tool_response", "tool_result", "ipython"),
    TOOL_CALL: ("function_call", "tool_call", "tool_calls"),
}
ROLE_VOCABULARIES: dict[str, dict[str, str]] = {
    "openai": OPENAI_ROLES,
    "paper": PAPER_ROLES,
    "common": {word: role for role, words in COMMON_ROLES.items() for word in words},
}
RoleVocabulary = Literal["openai", "paper", "common"]

LOSS_SWITCHES = ("train", "training", "loss", "weight", "train_on_turn")
"""Keys that set whether a turn has loss."""

PARTIAL_LOSS_SWITCH = "train_detail"
"""Axolotl's loss switch for parts of a turn; it is refused."""

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
TURN_KEYS = frozenset(
    ("tool_calls", "function_call", "tool_call_id", "name", PARTIAL_LOSS_SWITCH, *LOSS_SWITCHES, *THINKING_KEYS)
)
"""Keys of a turn, besides speaker and content, that are read, or that have no effect on training."""


def read_messages(value: Any, name: str, tags: Tags, vocabulary: RoleVocabulary = "common") -> list[Message]:
    """Read the turns of a chat. A call directly after a text of the assistant becomes part of that message.

    Args:
        value: The turns.
        name: Column that holds them.
        tags: The names that the dataset uses for roles and for the keys of a turn.
        vocabulary: Role names that are supported in addition.

    Raises:
        DataError: The value is not a list of turns, a role is unknown, or a text or a call is malformed.
    """
    if not fields.is_list_of_objects(value):
        raise DataError(
            f"{name!r} must be a list of messages, got {value!r:.60}.", f"{name!r} is not a list of messages"
        )
    roles = _roles(vocabulary, tags)
    messages: list[Message] = []
    for turn in value:
        role, new = _read_message(turn, roles, tags)
        if role == TOOL_CALL and messages and _can_join(messages[-1], new):
            messages[-1] = {**messages[-1], "tool_calls": new["tool_calls"]}
        else:
            messages.append(new)
    return messages


@lru_cache(maxsize=64)
def _roles(vocabulary: RoleVocabulary, tags: Tags) -> dict[str, str]:
    """Return the role of each known name; the names of the dataset come first."""
    own = {
        tags.system: "system",
        tags.user: "user",
        tags.assistant: "assistant",
        tags.tool: "tool",
        tags.function: TOOL_CALL,
    }
    return ROLE_VOCABULARIES[vocabulary] | {word: role for word, role in own.items() if word is not None}


def speaker_and_content_keys(turn: Record, tags: Tags) -> tuple[str, str]:
    """Return the keys under which a turn holds its speaker and its content."""
    role = tags.role or ("from" if "from" in turn else "role")
    return role, tags.content or ("value" if "value" in turn else "content")


def _read_message(turn: Record, roles: dict[str, str], tags: Tags) -> tuple[str, Message]:
    speaker, name = speaker_and_content_keys(turn, tags)
    role = _read_role(turn, speaker, roles)
    if role == TOOL_CALL:
        if turn.get(name) is None:
            raise _missing_key(turn, name, "content")
        return role, message("assistant", "", tool_calls.normalize_tool_calls(turn[name]), _read_switch(turn))
    if len(turn) == 2 and name in turn:
        return role, message(role, _read_content(turn, name))
    _check_no_thinking(turn)
    calls = turn.get("tool_calls") or turn.get("function_call")
    content = "" if calls and turn.get(name) is None else _read_content(turn, name)
    normalized = tool_calls.normalize_tool_calls(calls) if calls else None
    return role, message(role, content, normalized, _read_switch(turn))


def _read_role(turn: Record, name: str, roles: dict[str, str]) -> str:
    word = turn.get(name)
    if word is None:
        raise _missing_key(turn, name, "role")
    role = roles.get(word) or roles.get(word.lower()) if isinstance(word, str) else None
    if role is None:
        suggestion = did_you_mean(word, roles) if isinstance(word, str) else ""
        known = ", ".join(sorted(roles))
        raise DataError(
            f"unknown role {word!r:.60}.{suggestion} Known: {known}. Map other names in tags.", "unknown role"
        )
    return role


def _read_content(turn: Record, name: str) -> str:
    value = turn.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise _missing_key(turn, name, "content")
    if not isinstance(value, list):
        raise fields.not_text_error(name, value)
    return "".join(_read_part(part) for part in value)


def _missing_key(turn: Record, name: str, tag: str) -> DataError:
    if name in turn:
        return DataError(f"a turn needs {name!r}, but it is null.", f"turn whose {name!r} is null")
    return DataError(
        f"a turn needs {name!r}; it has {sorted(turn)}. Set another key in tags.{tag}.", f"turn without {tag}"
    )


def _read_part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise DataError(
            f'a part of a content must be {{"type": "text", "text": ...}}, got {part!r:.60}. Tuneline reads text only.',
            "content is not text",
        )
    return part["text"]


def _read_switch(turn: Record) -> bool | None:
    """Return the loss switch of a turn; None if it has none."""
    if turn.get(PARTIAL_LOSS_SWITCH):
        raise DataError(
            f"a turn has {PARTIAL_LOSS_SWITCH!r}, which trains on parts of the turn. Only whole turns are supported. "
            "Remove the key, or make each part a turn.",
            f"{PARTIAL_LOSS_SWITCH!r} in a turn",
        )
    switches = {name: _to_bool(name, turn[name]) for name in LOSS_SWITCHES if turn.get(name) is not None}
    if len(set(switches.values())) > 1:
        on, off = (next(name for name in switches if switches[name] is value) for value in (True, False))
        raise DataError(
            f"a turn has {on!r}: {turn[on]!r} and {off!r}: {turn[off]!r}, which contradict each other. Keep one.",
            "contradictory loss switches",
        )
    return next(iter(switches.values()), None)


def _to_bool(name: str, value: Any) -> bool:
    if value not in (0, 1):  # true and false are equal to 1 and 0
        raise DataError(
            f"{name!r} must be true or false, or 1 or 0, got {value!r:.60}.", f"{name!r} is neither true nor false"
        )
    return bool(value)


def _check_no_thinking(turn: Record) -> None:
    name = fields.first_present(turn, THINKING_KEYS)
    if name and turn[name]:
        raise DataError(
            f"a turn has thinking in {name!r}, which would be lost. Move it into the content.",
            "thinking outside of the content",
        )


def _can_join(previous: Message, call: Message) -> bool:
    return previous["role"] == "assistant" and previous["tool_calls"] is None and previous["train"] == call["train"]
