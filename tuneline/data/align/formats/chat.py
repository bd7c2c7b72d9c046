"""Turns of a chat, in any common spelling -> messages.

A turn is `{"from", "value"}` or `{"role", "content"}`. `tool_call_id` and `name` only tie a result to its call, which
stands before it, and are left out.

A switch tells whether a turn carries loss, under any name that the field uses: `train` and `training` (axolotl's
`message_field_training`, docs/dataset-formats/conversation.qmd and its tests), `weight` 0 or 1 (OpenAI's fine-tuning
format), `loss` (ms-swift; AgentGym's trajectories, Xi et al. 2024, arXiv:2406.04151), `train_on_turn` (home-llm). There
is no `mask`: some data sets mean by true that a turn carries loss, and others that it does not.
"""

from functools import lru_cache
from typing import Any, Literal

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields, tool_calls
from tuneline.data.align.formats.base import Record
from tuneline.data.schema import Message, message
from tuneline.errors import DataError, did_you_mean

TOOL_CALL = "call"
"""What a turn is that only calls a function; it becomes an assistant's message."""

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
PARTIAL_LOSS_SWITCH = "train_detail"
"""Axolotl's switch for parts of a turn."""

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
TURN_KEYS = frozenset(
    ("tool_calls", "function_call", "tool_call_id", "name", PARTIAL_LOSS_SWITCH, *LOSS_SWITCHES, *THINKING_KEYS)
)
"""What is read of a turn beside speaker and content, or passed over because it says nothing that is trained."""


def read_messages(value: Any, name: str, tags: Tags, spelling: RoleVocabulary = "common") -> list[Message]:
    """Read the turns of a chat; a call that follows its speaker's text directly joins it in one message.

    Args:
        value: The turns.
        name: Field that they stand in.
        tags: The data set's own words.
        spelling: Words for roles that are known beside them.

    Raises:
        DataError: They are no turns, a role is unknown, or a text or call is none.
    """
    if not fields.is_list_of_objects(value):
        raise DataError(f"{name!r} must be a list of messages, got {value!r:.60}.", f"{name!r} is no list of messages")
    words = _words(spelling, tags)
    said: list[Message] = []
    for turn in value:
        role, one = _message(turn, words, tags)
        if role == TOOL_CALL and said and _can_join(said[-1], one):
            said[-1] = {**said[-1], "tool_calls": one["tool_calls"]}
        else:
            said.append(one)
    return said


@lru_cache(maxsize=64)
def _words(spelling: RoleVocabulary, tags: Tags) -> dict[str, str]:
    own = {
        tags.system: "system",
        tags.user: "user",
        tags.assistant: "assistant",
        tags.tool: "tool",
        tags.function: TOOL_CALL,
    }
    return ROLE_VOCABULARIES[spelling] | {word: role for word, role in own.items() if word is not None}


def speaker_and_content_keys(turn: Record, tags: Tags) -> tuple[str, str]:
    """Return under which keys a turn has its speaker and its content."""
    role = tags.role or ("from" if "from" in turn else "role")
    return role, tags.content or ("value" if "value" in turn else "content")


def _message(turn: Record, words: dict[str, str], tags: Tags) -> tuple[str, Message]:
    speaker, name = speaker_and_content_keys(turn, tags)
    role = _role(turn, speaker, words)
    if role == TOOL_CALL:
        if turn.get(name) is None:
            raise _lacks(turn, name, "content")
        return role, message("assistant", "", tool_calls.normalize_tool_calls(turn[name]), _train(turn))
    if len(turn) == 2 and name in turn:
        return role, message(role, _content(turn, name))
    _keeps_thoughts(turn)
    called = turn.get("tool_calls") or turn.get("function_call")
    content = "" if called and turn.get(name) is None else _content(turn, name)
    return role, message(role, content, tool_calls.normalize_tool_calls(called) if called else None, _train(turn))


def _role(turn: Record, name: str, words: dict[str, str]) -> str:
    word = turn.get(name)
    if word is None:
        raise _lacks(turn, name, "role")
    role = words.get(word) or words.get(word.lower()) if isinstance(word, str) else None
    if role is None:
        near = did_you_mean(word, words) if isinstance(word, str) else ""
        known = ", ".join(sorted(words))
        raise DataError(f"unknown role {word!r:.60}.{near} Known: {known}. Name your own under tags.", "unknown role")
    return role


def _content(turn: Record, name: str) -> str:
    value = turn.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise _lacks(turn, name, "content")
    if not isinstance(value, list):
        raise fields.not_text_error(name, value)
    return "".join(_part(part) for part in value)


def _lacks(turn: Record, name: str, tag: str) -> DataError:
    if name in turn:
        return DataError(f"a turn needs {name!r}, and it is null.", f"turn whose {name!r} is null")
    return DataError(
        f"a turn needs {name!r}; it has {sorted(turn)}. Another key is named in tags.{tag}.", f"turn without {tag}"
    )


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise DataError(
            f'a part of a content must be {{"type": "text", "text": ...}}, got {part!r:.60}. Tuneline reads text only.',
            "content that is no text",
        )
    return part["text"]


def _train(turn: Record) -> bool | None:
    if turn.get(PARTIAL_LOSS_SWITCH):
        raise DataError(
            f"a turn has {PARTIAL_LOSS_SWITCH!r}, which trains parts of it, and a turn is trained as a whole or not at all. Leave it "
            "out, or make turns of the parts.",
            f"{PARTIAL_LOSS_SWITCH!r} in a turn",
        )
    said = {name: _switch(name, turn[name]) for name in LOSS_SWITCHES if turn.get(name) is not None}
    if len(set(said.values())) > 1:
        one, other = (next(name for name in said if said[name] is value) for value in (True, False))
        raise DataError(
            f"a turn says {one!r}: {turn[one]!r} and {other!r}: {turn[other]!r}, which contradict each other. Keep "
            "one.",
            "switches that contradict each other",
        )
    return next(iter(said.values()), None)


def _switch(name: str, value: Any) -> bool:
    if value not in (0, 1):  # true and false among them
        raise DataError(
            f"{name!r} must be true or false, or 1 or 0, got {value!r:.60}.", f"{name!r} is neither true nor false"
        )
    return bool(value)


def _keeps_thoughts(turn: Record) -> None:
    name = fields.first_present(turn, THINKING_KEYS)
    if name and turn[name]:
        raise DataError(
            f"a turn has thoughts in {name!r}, which would be lost. Write them into its content.",
            "thoughts beside the content",
        )


def _can_join(before: Message, call: Message) -> bool:
    return before["role"] == "assistant" and before["tool_calls"] is None and before["train"] == call["train"]
