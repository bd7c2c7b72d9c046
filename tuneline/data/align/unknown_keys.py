"""Keys of rows and of turns that nothing reads: a misspelt one changes nothing and would go unseen.

They are counted and told once for each data set, with the first place of each. A null says nothing and is passed over:
tables fill gaps with it.
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
"""So many different keys are counted by name; what comes later is counted together."""

MAX_KEYS_SHOWN = 8
OTHER_KEYS = "(further keys)"
SCHEMA_COLUMNS = ("tools", "functions")
"""Columns whose objects are no turns."""

TURN_SEPARATOR = "[]."
"""Between a column of turns and a key of a turn."""

_COLUMNS = (*Columns.model_fields, "conversations", "prompt", "completion", "response", "kto_tag")
_TURN_KEYS = ("role", "content", "from", "value", *chat.TURN_KEYS)


def find_unknown_keys(record: Record, known: frozenset[str], tags: Tags) -> list[str]:
    """Return the columns of a row that its format does not read, and the keys of its turns, as `messages[].key`.

    Args:
        record: The row, its columns named as its format names them.
        known: Columns that the format reads of it.
        tags: The data set's own words.
    """
    found = []
    for name, value in record.items():
        if name not in known:
            if value is not None and name not in validation.MEDIA_COLUMNS:
                found.append(name)
        elif type(value) in (list, dict) and name not in SCHEMA_COLUMNS:
            for turn in [value] if isinstance(value, dict) else value:
                if isinstance(turn, dict) and len(turn) > 2:
                    found += [f"{name}{TURN_SEPARATOR}{key}" for key in _of_turn(turn, tags)]
    return found


def _of_turn(turn: Record, tags: Tags) -> list[str]:
    read = chat.speaker_and_content_keys(turn, tags)
    return [key for key, value in turn.items() if value is not None and key not in read and key not in chat.TURN_KEYS]


@dataclass
class UnknownKeyCounter:
    """What nothing read in one data set: how often, and where first."""

    numbers: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, place: str, found: Iterable[str]) -> None:
        """Count the keys of one row."""
        for key in found:
            name = key if key in self.first or len(self.first) < MAX_KEYS else OTHER_KEYS
            self.first.setdefault(name, place)
            self.numbers[name] += 1

    @classmethod
    def of(cls, counts: dict[str, dict[str, Any]]) -> "Unread":
        """Return what `counts` gave."""
        numbers = Counter({name: found["count"] for name, found in counts.items()})
        return cls(numbers, {name: found["first"] for name, found in counts.items()})

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return for each key its `count`, of rows or of turns, and the `first` place."""
        return {name: {"count": self.numbers[name], "first": place} for name, place in self.first.items()}

    def lines(self) -> list[str]:
        """Return what is told of each key, those that look like a misspelt one first."""
        told = [(_near(name), name, place) for name, place in self.first.items()]
        ordered = sorted(told, key=lambda each: not each[0])
        lines = [
            f"{name!r} ({self.numbers[name]:,}, first {place}).{near}" for near, name, place in ordered[:MAX_KEYS_SHOWN]
        ]
        return [*lines, *([f"and {len(told) - MAX_KEYS_SHOWN} more."] if len(told) > MAX_KEYS_SHOWN else [])]


def _near(name: str) -> str:
    _, inside, key = name.rpartition(TURN_SEPARATOR)
    return did_you_mean(key, _TURN_KEYS if inside else _COLUMNS)
