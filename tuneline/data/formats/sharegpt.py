"""ShareGPT: `conversations`, a list of `{"from", "value"}`, optional `system`."""

from tuneline.data.formats.base import Record, formats, role, text, turns
from tuneline.data.schema import Message, message

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@formats.register("sharegpt")
def align_sharegpt(record: Record) -> list[Message]:
    """Translate the roles; `system` beside the conversation comes first."""
    system = text(record, "system", "sharegpt", default="")
    first = [message("system", system)] if system else []
    said = turns(record, "conversations", "sharegpt")
    return first + [message(role(turn.get("from"), ROLES), text(turn, "value", "sharegpt turn")) for turn in said]
