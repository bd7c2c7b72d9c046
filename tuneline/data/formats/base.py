"""What formats share: their registry, and how they ask a record for its fields."""

from collections.abc import Callable
from typing import Any

from tuneline.data.schema import Message
from tuneline.errors import DataError
from tuneline.registry import Registry

Record = dict[str, Any]
formats: Registry[Callable[[Record], list[Message]]] = Registry("format")


def text(record: Record, name: str, format: str, default: str | None = None) -> str:
    """Return a field that must be text.

    Raises:
        DataError: The field is missing or holds something else.
    """
    value = record.get(name, default)
    if value is None:
        raise DataError(f"a row in {format} format needs {name!r}; it has {sorted(record)}.")
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be text, got {type(value).__name__} {value!r:.60}.")
    return value


def turns(record: Record, name: str, format: str) -> list[Record]:
    """Return a field that must be a list of objects.

    Raises:
        DataError: The field is missing, empty or holds something else.
    """
    value = record.get(name)
    if value is None:
        raise DataError(f"a row in {format} format needs {name!r}; it has {sorted(record)}.")
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f"{name!r} must be a list of messages, got {value!r:.60}.")
    return value


def role(word: Any, known: dict[str, str]) -> str:
    """Translate a role.

    Raises:
        DataError: The role is unknown.
    """
    if word not in known:
        raise DataError(f"unknown role {word!r}. Known: {', '.join(sorted(known))}.")
    return known[word]
