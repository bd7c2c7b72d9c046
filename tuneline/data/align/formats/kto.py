"""KTO: a conversation, or a prompt and its answer, and whether the answer is desirable (Ethayarajh et al. 2024)."""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls, transcript
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, Message, content, message
from tuneline.errors import DataError

LABELS = ("label", "kto_tag")
ANSWERS = ("completion", "output")


def align_kto(record: Record, tags: Tags) -> Content:
    """Read `messages`, or `prompt` and `completion`, or `instruction` and `output`; and `label` beside them."""
    name = fields.first_of(record, LABELS)
    if name is None:
        raise fields.missing(record, "label", "kto", LABELS)
    if not isinstance(record[name], bool):
        got = f"{type(record[name]).__name__} {record[name]!r:.60}"
        raise DataError(f"{name!r} must be true or false, got {got}.", "label is neither true nor false")
    return content(_said(record, tags), tools=tool_calls.tools(record.get("tools")), label=record[name])


def _said(record: Record, tags: Tags) -> list[Message]:
    turns = fields.first_of(record, fields.TURNS)
    if turns:
        return [*fields.system(record), *chat.messages(record[turns], turns, tags)]
    asks = fields.first_of(record, fields.ASKS)
    if asks is None:
        raise fields.missing(record, "messages", "kto", (*fields.TURNS, *fields.ASKS))
    answers = fields.first_of(record, ANSWERS)
    if answers is None:
        raise fields.missing(record, "completion", "kto", ANSWERS)
    if transcript.is_transcript(record[asks]):
        said = fields.text(record, answers, "kto").strip()
        return [*fields.system(record), *transcript.prompt(record[asks]), message("assistant", said)]
    return [*_asked(record, asks, tags), *_answered(record, answers, tags)]


def _asked(record: Record, name: str, tags: Tags) -> list[Message]:
    if isinstance(record[name], list):
        return [*fields.system(record), *chat.messages(record[name], name, tags)]
    return fields.question(record, name, "kto")


def _answered(record: Record, name: str, tags: Tags) -> list[Message]:
    if isinstance(record[name], list):
        return chat.messages(record[name], name, tags)
    return [message("assistant", fields.text(record, name, "kto"))]


def looks_like_kto(record: Record) -> bool:
    """Tell whether a record has a label that may mean yes or no, and something said."""
    name = fields.first_of(record, LABELS)
    return (
        name is not None
        and _is_yes_or_no(record[name])
        and bool(fields.first_of(record, (*fields.TURNS, *fields.ASKS)))
    )


def _is_yes_or_no(value: Any) -> bool:
    """Count 0, 1 and words too: such a row is meant for KTO, and is refused there, not read as something else."""
    return str(value).lower() in ("true", "false", "0", "1", "0.0", "1.0")


def _keys(record: Record) -> frozenset[str]:
    label, turns = fields.first_of(record, LABELS) or "label", fields.first_of(record, fields.TURNS)
    if turns:
        return frozenset((label, turns, "system", "tools"))
    own = fields.first_of(record, fields.ASKS), fields.first_of(record, ANSWERS)
    return frozenset((label, *filter(None, own), "input", "system", "history", "tools"))


formats.register("kto")(Format(align_kto, looks_like_kto, _keys))
