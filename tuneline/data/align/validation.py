"""Validation of examples: rules that an example must meet to be trained on. Refused rows are counted by reason."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from tuneline.data import schema
from tuneline.data.schema import Content, Kind, Message
from tuneline.errors import DataError

ALLOWED_NEXT = {
    "user": ("assistant", "call"),
    "assistant": ("user",),
    "call": ("tool", "user"),
    "tool": ("tool", "assistant", "call"),
}
"""Turns that may follow each turn; a `call` is an assistant turn with tool calls."""

NON_EMPTY_ROLES = ("user", "assistant")
MEDIA_COLUMNS = frozenset(("images", "image", "videos", "video", "audios", "audio", "_images", "_videos", "_audios"))


def validate(content: Content) -> Kind:
    """Check that the content of an example can be trained on, and return its kind.

    Raises:
        DataError: It cannot; `reason` names the rule.
    """
    kind = schema.kind(content)
    if kind == "text":
        _check_text(content)
    elif kind == "preference" or content["rejected"]:
        _check_pair(content)
    else:
        _check_chat(content["messages"])
    return kind


def check_no_media(record: dict[str, object]) -> None:
    """Refuse a record with images, videos or audio.

    Raises:
        DataError: A media column is not empty.
    """
    if MEDIA_COLUMNS.isdisjoint(record):
        return
    for name in sorted(MEDIA_COLUMNS & record.keys()):
        value = record[name]
        if any(value) if isinstance(value, list) else value:
            raise DataError(
                f"column {name!r} holds {value!r:.60}. Tuneline trains on text only.", f"{name!r} is not text"
            )


def _check_text(content: Content) -> None:
    if content["messages"] or content["chosen"] or content["rejected"]:
        raise DataError("the row has both a text and a chat. Keep one of them.", "text and chat in one row")
    if content["text"].isspace():
        raise DataError("the text is empty.", "empty text")


def _check_pair(content: Content) -> None:
    for name in ("chosen", "rejected"):
        if not content[name]:
            raise DataError(f"the pair has no {name!r}.", f"no {name!r}")
    if content["label"] is not None:
        raise DataError("the row has both a pair and a label. Keep one of them.", "pair and label in one row")
    if content["chosen"] == content["rejected"]:
        raise DataError("chosen and rejected are the same.", "chosen and rejected are the same")
    prompt = content["messages"]
    if prompt and prompt[-1]["role"] == "assistant":
        raise DataError(
            "the prompt ends with an assistant turn, so chosen and rejected do not answer a question.",
            "prompt ends with an assistant turn",
        )
    for answer in (content["chosen"], content["rejected"]):
        _check_chat([*prompt, *answer])


def _check_chat(messages: list[Message]) -> None:
    order = tuple(["call" if turn["tool_calls"] else turn["role"] for turn in messages])
    fault = _fault(order)
    if fault:
        raise DataError(*fault)
    for turn, role in zip(messages, order, strict=True):
        content = turn["content"]
        if (not content or content.isspace()) and role in NON_EMPTY_ROLES:
            number = messages.index(turn) + 1
            raise DataError(f"turn {number} ({role}) is empty.", f"empty {role} turn")


@lru_cache(maxsize=4096)
def _fault(order: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the error of an order of turns, and the reason under which it is counted."""
    turns = order[1:] if order[:1] == ("system",) else order
    if "system" in turns:
        if len(turns) < len(order):
            return "the conversation has two system messages.", "two system messages"
        return "the system message is not the first message.", "system message not first"
    if "user" not in turns:
        return "the conversation has no user turn.", "no user turn"
    if turns[0] in ("assistant", "call"):
        return "the conversation begins with an assistant turn.", "begins with an assistant turn"
    return _order_fault(turns, len(order) - len(turns)) or _end_fault(turns[-1])


def _order_fault(turns: Sequence[str], num_before: int) -> tuple[str, str] | None:
    if turns[0] == "tool":
        return f"turn {num_before + 1} is a tool result without a preceding call.", "tool turn without a call"
    for number, (previous, turn) in enumerate(pairwise(turns), start=num_before + 2):
        if turn == "tool" and previous not in ("call", "tool"):
            return f"turn {number} is a tool result without a preceding call.", "tool turn without a call"
        if turn not in ALLOWED_NEXT[previous]:
            return f"turn {number} ({_role(turn)}) follows a turn of role {_role(previous)}.", "turns do not alternate"
    return None


def _end_fault(last: str) -> tuple[str, str] | None:
    if last in ("assistant", "call"):
        return None
    return f"the conversation ends with a {last} turn, so it has no answer to train on.", f"ends with a {last} turn"


def _role(turn: str) -> str:
    return "assistant" if turn == "call" else turn
