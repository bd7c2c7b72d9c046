"""Readers of single fields of a record. A null value counts as absent: tables fill gaps with it."""

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
        DataError: The field is missing or is not text.
    """
    value = record.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise missing_field_error(record, name, format)
    raise not_text_error(name, value)


def optional_text(record: Record, name: str) -> str:
    """Return an optional text field; an empty string if it is absent.

    Raises:
        DataError: The field is not text.
    """
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise not_text_error(name, value)


def first_present(record: Record, names: Iterable[str]) -> str | None:
    """Return the first of the named fields that the record has."""
    for name in names:
        if record.get(name) is not None:
            return name
    return None


def is_list_of_objects(value: Any) -> TypeGuard[list[Record]]:
    """Return whether a value is a non-empty list of objects, as the turns of a chat are."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def read_system(record: Record) -> list[Message]:
    """Return the system message from the `system` column; an empty text gives none."""
    text = optional_text(record, "system")
    return [message("system", text)] if text else []


def read_question(record: Record, name: str, format: str) -> list[Message]:
    """Return system message, earlier rounds and question; an `input` follows the instruction after a line break.

    Raises:
        DataError: A field is missing or is not text, an input has no instruction, or `history` is not a list of pairs.
    """
    question, context = required_text(record, name, format), optional_text(record, "input")
    if context:
        if not question or question.isspace():
            raise DataError(
                f"{name!r} is empty but 'input' is {context!r:.60}. If 'input' holds the question, set "
                "columns: {instruction: input}.",
                f"empty {name!r} with an 'input'",
            )
        question = f"{question}\n{context}"
    before = [*read_system(record), *_read_history(record)] if "system" in record or "history" in record else []
    return [*before, message("user", question)]


def _read_history(record: Record) -> list[Message]:
    rounds = record.get("history")
    if not rounds:
        return []
    if not isinstance(rounds, list) or not all(_is_round(entry) for entry in rounds):
        raise DataError(
            f"'history' must be a list of [question, answer] pairs, got {rounds!r:.60}.",
            "history is not a list of pairs",
        )
    return [turn for question, answer in rounds for turn in (message("user", question), message("assistant", answer))]


def _is_round(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def missing_field_error(record: Record, name: str, format: str, others: Iterable[str] = ()) -> DataError:
    """Build the error of a row without a required field, which may also have one of the `others` as its name."""
    null = next((column for column in (name, *others) if column in record), None)
    if null is not None:
        return DataError(f"a row in {format} format needs {null!r}, but it is null.", f"{null!r} is null")
    return DataError(f"a row in {format} format needs {name!r}; it has {sorted(record)}.", f"no {name!r}")


def not_text_error(name: str, value: Any) -> DataError:
    """Build the error of a field that must be text."""
    return DataError(f"{name!r} must be text, got {type(value).__name__} {value!r:.60}.", f"{name!r} is not text")
