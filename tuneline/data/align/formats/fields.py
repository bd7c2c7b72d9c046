"""How formats ask a record for its fields. A null counts as absent: tables fill gaps with it."""

from collections.abc import Iterable
from typing import Any, TypeGuard

from tuneline.data.align.formats.base import Record
from tuneline.data.schema import Message, message
from tuneline.errors import DataError

QUESTION_COLUMNS = ("instruction", "prompt")
"""Columns that may hold a question as text."""

TURN_COLUMNS = ("conversations", "messages", "conversation")
"""Columns that may hold the turns of a chat."""


def required_text(record: Record, name: str, format: str) -> str:
    """Return a field that must be text.

    Raises:
        DataError: The field is missing or holds something else.
    """
    value = record.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise missing_field_error(record, name, format)
    raise not_text_error(name, value)


def optional_text(record: Record, name: str) -> str:
    """Return a field that is text where it is there, else an empty string.

    Raises:
        DataError: The field holds something else.
    """
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise not_text_error(name, value)


def first_present(record: Record, names: Iterable[str]) -> str | None:
    """Return the first of some fields that is there."""
    for name in names:
        if record.get(name) is not None:
            return name
    return None


def is_list_of_objects(value: Any) -> TypeGuard[list[Record]]:
    """Tell whether a value is a list of objects, as the turns of a chat are."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def read_system(record: Record) -> list[Message]:
    """Return the system message that stands beside a conversation; an empty one is none."""
    said = optional_text(record, "system")
    return [message("system", said)] if said else []


def read_question(record: Record, name: str, format: str) -> list[Message]:
    """Return system message, earlier rounds and question; an `input` follows the instruction on a line of its own.

    Raises:
        DataError: A field is missing or is no text, an input has no instruction, or `history` is no list of pairs.
    """
    asked, about = required_text(record, name, format), optional_text(record, "input")
    if about:
        if not asked or asked.isspace():
            raise DataError(
                f"{name!r} is empty, and 'input' is {about!r:.60}: nothing says what to do with it. Where the question "
                f"stands in 'input', set columns: {{instruction: input}}.",
                f"empty {name!r} with an 'input'",
            )
        asked = f"{asked}\n{about}"
    before = [*read_system(record), *_history(record)] if "system" in record or "history" in record else []
    return [*before, message("user", asked)]


def _history(record: Record) -> list[Message]:
    rounds = record.get("history")
    if not rounds:
        return []
    if not isinstance(rounds, list) or not all(_is_round(each) for each in rounds):
        raise DataError(
            f"'history' must be a list of [question, answer] pairs, got {rounds!r:.60}.", "history is no list of pairs"
        )
    return [turn for asked, said in rounds for turn in (message("user", asked), message("assistant", said))]


def _is_round(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def missing_field_error(record: Record, name: str, format: str, others: Iterable[str] = ()) -> DataError:
    """Build the error of a row that lacks a field, under its name or under others that it may have."""
    null = next((each for each in (name, *others) if each in record), None)
    if null is not None:
        return DataError(f"a row in {format} format needs {null!r}, and it is null.", f"{null!r} is null")
    return DataError(f"a row in {format} format needs {name!r}; it has {sorted(record)}.", f"no {name!r}")


def not_text_error(name: str, value: Any) -> DataError:
    """Build the error of a field that must be text."""
    return DataError(f"{name!r} must be text, got {type(value).__name__} {value!r:.60}.", f"{name!r} is no text")
