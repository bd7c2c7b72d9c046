"""KTO: a conversation, or a prompt and its answer, with a label for a desirable answer (Ethayarajh et al. 2024)."""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls, transcript
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, Message, content, message
from tuneline.errors import DataError

LABEL_COLUMNS = ("label", "kto_tag")
ANSWER_COLUMNS = ("completion", "output")


def align_kto(record: Record, tags: Tags) -> Content:
    """Read `messages`, or `prompt` and `completion`, or `instruction` and `output`; and `label`."""
    name = fields.first_present(record, LABEL_COLUMNS)
    if name is None:
        raise fields.missing_field_error(record, "label", "kto", LABEL_COLUMNS)
    if not isinstance(record[name], bool):
        label = f"{type(record[name]).__name__} {record[name]!r:.60}"
        raise DataError(f"{name!r} must be true or false, got {label}.", "label is neither true nor false")
    return content(_read_chat(record, tags), tools=tool_calls.normalize_tools(record.get("tools")), label=record[name])


def _read_chat(record: Record, tags: Tags) -> list[Message]:
    turns = fields.first_present(record, fields.TURN_COLUMNS)
    if turns:
        return [*fields.read_system(record), *chat.read_messages(record[turns], turns, tags)]
    question = fields.first_present(record, fields.QUESTION_COLUMNS)
    if question is None:
        names = (*fields.TURN_COLUMNS, *fields.QUESTION_COLUMNS)
        raise fields.missing_field_error(record, "messages", "kto", names)
    answer = fields.first_present(record, ANSWER_COLUMNS)
    if answer is None:
        raise fields.missing_field_error(record, "completion", "kto", ANSWER_COLUMNS)
    if transcript.is_transcript(record[question]):
        text = fields.required_text(record, answer, "kto").strip()
        return [*fields.read_system(record), *transcript.parse_prompt(record[question]), message("assistant", text)]
    return [*_read_prompt(record, question, tags), *_read_answer(record, answer, tags)]


def _read_prompt(record: Record, name: str, tags: Tags) -> list[Message]:
    if isinstance(record[name], list):
        return [*fields.read_system(record), *chat.read_messages(record[name], name, tags)]
    return fields.read_question(record, name, "kto")


def _read_answer(record: Record, name: str, tags: Tags) -> list[Message]:
    if isinstance(record[name], list):
        return chat.read_messages(record[name], name, tags)
    return [message("assistant", fields.required_text(record, name, "kto"))]


def looks_like_kto(record: Record) -> bool:
    """Return whether a record has a yes/no label, and a conversation or a question."""
    name = fields.first_present(record, LABEL_COLUMNS)
    return (
        name is not None
        and _is_yes_or_no(record[name])
        and bool(fields.first_present(record, (*fields.TURN_COLUMNS, *fields.QUESTION_COLUMNS)))
    )


def _is_yes_or_no(value: Any) -> bool:
    """Accept 0, 1 and texts too: such a row is meant for KTO, which refuses it; no other format should read it."""
    return str(value).lower() in ("true", "false", "0", "1", "0.0", "1.0")


def _columns_read(record: Record) -> frozenset[str]:
    label = fields.first_present(record, LABEL_COLUMNS) or "label"
    turns = fields.first_present(record, fields.TURN_COLUMNS)
    if turns:
        return frozenset((label, turns, "system", "tools"))
    pair = fields.first_present(record, fields.QUESTION_COLUMNS), fields.first_present(record, ANSWER_COLUMNS)
    return frozenset((label, *filter(None, pair), "input", "system", "history", "tools"))


formats.register("kto")(Format(align_kto, looks_like_kto, _columns_read))
