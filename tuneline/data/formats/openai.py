"""OpenAI chat: `messages`, a list of `{"role", "content"}`, with optional `tool_calls`, and `tools` beside it."""

from tuneline.data.formats.base import Record, formats, role, text, turns
from tuneline.data.schema import Message, message
from tuneline.errors import DataError
from tuneline.identity import canonical_json

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@formats.register("openai")
def align_openai(record: Record) -> list[Message]:
    """Take the messages as they are; `train: false` on an assistant message leaves it out of the loss."""
    return [_message(turn) for turn in turns(record, "messages", "openai")]


def _message(turn: Record) -> Message:
    calls = turn.get("tool_calls")
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise DataError(f"'train' must be true or false, got {train!r}.")
    content = text(turn, "content", "openai message", default="" if calls else None)
    return message(role(turn.get("role"), ROLES), content, canonical_json(calls) if calls else None, train)
