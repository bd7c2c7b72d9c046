"""What makes an example unusable. Each rule has a reason of its own, by which refused rows are counted."""

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
"""Who may speak after whom; a `call` is an assistant's turn with tool calls."""

NON_EMPTY_ROLES = ("user", "assistant")
MEDIA_COLUMNS = frozenset(("images", "image", "videos", "video", "audios", "audio", "_images", "_videos", "_audios"))


def validate(said: Content) -> Kind:
    """Check that training can make use of what a row says, and tell its kind.

    Raises:
        DataError: It cannot; the reason says why.
    """
    kind = schema.kind(said)
    if kind == "text":
        _is_text(said)
    elif kind == "preference" or said["rejected"]:
        _is_pair(said)
    else:
        _is_chat(said["messages"])
    return kind


def check_no_media(record: dict[str, object]) -> None:
    """Refuse a record with images, videos or sounds.

    Raises:
        DataError: A column holds some.
    """
    if MEDIA_COLUMNS.isdisjoint(record):
        return
    for name in sorted(MEDIA_COLUMNS & record.keys()):
        value = record[name]
        if any(value) if isinstance(value, list) else value:
            raise DataError(
                f"column {name!r} holds {value!r:.60}. Tuneline trains on text only.", f"{name!r} is not text"
            )


def _is_text(said: Content) -> None:
    if said["messages"] or said["chosen"] or said["rejected"]:
        raise DataError("the row holds a text and a chat, and can be only one of them.", "text and chat in one row")
    if said["text"].isspace():
        raise DataError("the text is empty.", "empty text")


def _is_pair(said: Content) -> None:
    for name in ("chosen", "rejected"):
        if not said[name]:
            raise DataError(f"the pair has no {name!r}.", f"no {name!r}")
    if said["label"] is not None:
        raise DataError("the row holds a pair and a label, and can be only one of them.", "pair and label in one row")
    if said["chosen"] == said["rejected"]:
        raise DataError("chosen and rejected are the same.", "chosen and rejected are the same")
    prompt = said["messages"]
    if prompt and prompt[-1]["role"] == "assistant":
        raise DataError(
            "the prompt ends on an assistant turn, so chosen and rejected answer nothing.",
            "prompt ends on an assistant turn",
        )
    for answer in (said["chosen"], said["rejected"]):
        _is_chat([*prompt, *answer])


def _is_chat(messages: list[Message]) -> None:
    shape = tuple(["call" if turn["tool_calls"] else turn["role"] for turn in messages])
    fault = _fault(shape)
    if fault:
        raise DataError(*fault)
    for turn, what in zip(messages, shape, strict=True):
        content = turn["content"]
        if (not content or content.isspace()) and what in NON_EMPTY_ROLES:
            number = messages.index(turn) + 1
            raise DataError(f"turn {number}, by the {what}, is empty.", f"empty {what} turn")


@lru_cache(maxsize=4096)
def _fault(shape: tuple[str, ...]) -> tuple[str, str] | None:
    """Return what is wrong with an order of turns, and the reason to count it under."""
    turns = shape[1:] if shape[:1] == ("system",) else shape
    if "system" in turns:
        if len(turns) < len(shape):
            return "there are two system messages.", "two system messages"
        return "a system message stands after the first turn.", "system message not first"
    if "user" not in turns:
        return "the conversation has no user turn.", "no user turn"
    if turns[0] in ("assistant", "call"):
        return "the conversation begins with an assistant turn.", "begins with an assistant turn"
    return _disorder(turns, len(shape) - len(turns)) or _open_end(turns[-1])


def _disorder(turns: Sequence[str], before: int) -> tuple[str, str] | None:
    if turns[0] == "tool":
        return f"turn {before + 1} is a function's result, and no call stands before it.", "tool turn without a call"
    for number, (one, other) in enumerate(pairwise(turns), start=before + 2):
        if other == "tool" and one not in ("call", "tool"):
            return f"turn {number} is a function's result, and no call stands before it.", "tool turn without a call"
        if other not in ALLOWED_NEXT[one]:
            return f"turn {number}, by {_who(other)}, follows one by {_who(one)}.", "turns do not alternate"
    return None


def _open_end(last: str) -> tuple[str, str] | None:
    if last in ("assistant", "call"):
        return None
    return f"the conversation ends on a {last} turn, so it has no answer to learn.", f"ends on a {last} turn"


def _who(speaker: str) -> str:
    return {"user": "the user", "tool": "a function"}.get(speaker, "the assistant")
