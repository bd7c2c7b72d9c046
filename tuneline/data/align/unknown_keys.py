"""Keys of rows and of turns that nothing reads: a misspelled key has no effect and would go unnoticed.

They are counted and logged once per dataset, with the first place of each. Null values are skipped: tables fill gaps
with them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tuneline.config.sections.sources import Columns, Tags
from tuneline.data.align import validation
from tuneline.data.align.formats import chat
from tuneline.data.align.formats.base import Record
from tuneline.errors import did_you_mean

MAX_KEYS = 50
"""Different keys that are counted by name; further keys are counted together."""

MAX_KEYS_SHOWN = 8
OTHER_KEYS = "(further keys)"
SCHEMA_COLUMNS = ("tools", "functions")
"""Columns whose objects are not turns."""

TURN_SEPARATOR = "[]."
"""Separates a column of turns from a key of a turn."""

_COLUMNS = (*Columns.model_fields, "conversations", "prompt", "completion", "response", "kto_tag")
_TURN_KEYS = ("role", "content", "from", "value", *chat.TURN_KEYS)


def find_unknown_keys(record: Record, read_columns: frozenset[str], tags: Tags) -> list[str]:
    """Return the columns of a row that its format does not read, and the keys of its turns, as `messages[].key`.

    Args:
        record: The row, with its columns renamed to the names of the format.
        read_columns: Columns that the format reads.
        tags: The names that the dataset uses for roles and for the keys of a turn.
    """
    keys = []
    for name, value in record.items():
        if name not in read_columns:
            if value is not None and name not in validation.MEDIA_COLUMNS:
                keys.append(name)
        elif type(value) in (list, dict) and name not in SCHEMA_COLUMNS:
            for turn in [value] if isinstance(value, dict) else value:
                if isinstance(turn, dict) and len(turn) > 2:
                    keys += [f"{name}{TURN_SEPARATOR}{key}" for key in _unknown_in_turn(turn, tags)]
    return keys


def _unknown_in_turn(turn: Record, tags: Tags) -> list[str]:
    names = chat.speaker_and_content_keys(turn, tags)
    return [key for key, value in turn.items() if value is not None and key not in names and key not in chat.TURN_KEYS]


@dataclass
class UnknownKeyCounter:
    """How often each unknown key occurs in one dataset, and its first place."""

    numbers: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, keys: Iterable[str]) -> None:
        """Count the unknown keys of one row."""
        for key in keys:
            name = key if key in self.first or len(self.first) < MAX_KEYS else OTHER_KEYS
            self.first.setdefault(name, place)
            self.numbers[name] += 1

    @classmethod
    def from_counts(cls, counts: dict[str, dict[str, Any]]) -> "UnknownKeyCounter":
        """Restore a counter from the result of `to_counts`."""
        numbers = Counter({name: entry["count"] for name, entry in counts.items()})
        return cls(numbers, {name: entry["first"] for name, entry in counts.items()})

    def to_counts(self) -> dict[str, dict[str, Any]]:
        """Return for each key its `count`, of rows or of turns, and its `first` place."""
        return {name: {"count": self.numbers[name], "first": place} for name, place in self.first.items()}

    def describe(self) -> list[str]:
        """Return a line per key, likely misspellings first."""
        keys = sorted(
            ((_suggestion(name), name, place) for name, place in self.first.items()), key=lambda key: not key[0]
        )
        lines = [
            f"{name!r} ({self.numbers[name]:,} times, first at {place}).{suggestion}"
            for suggestion, name, place in keys[:MAX_KEYS_SHOWN]
        ]
        return [*lines, *([f"and {len(keys) - MAX_KEYS_SHOWN} more."] if len(keys) > MAX_KEYS_SHOWN else [])]


def _suggestion(name: str) -> str:
    _, inside, key = name.rpartition(TURN_SEPARATOR)
    return did_you_mean(key, _TURN_KEYS if inside else _COLUMNS)
