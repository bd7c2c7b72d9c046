"""What became of each key of an imported file, for readers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_VALUE_LENGTH = 100
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class MappedValue:
    """A value of the recipe, and the keys that it comes from."""

    ours: str
    value: Any
    keys: tuple[str, ...]
    written: bool
    """False where the file leaves the keys out: the value is LlamaFactory's default."""


@dataclass
class ImportReport:
    """Each key of a file, by what became of it."""

    taken: list[MappedValue] = field(default_factory=list)
    differs: list[tuple[str, str]] = field(default_factory=list)
    """Key, and what it means here."""

    added: list[tuple[str, Any, str]] = field(default_factory=list)
    """Key of the recipe, its value, and why it is there."""

    ignored: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> keys."""

    def lines(self) -> list[str]:
        """Write the report down."""
        written = [f"{', '.join(each.keys)} -> {_pair(each)}" for each in self.taken if each.written]
        left_out = [f"{_pair(each)} ({', '.join(each.keys)})" for each in self.taken if not each.written]
        return [
            *_part("Taken", written),
            *_part("Left out in the file, so written out as LlamaFactory has it", left_out),
            *_part("Added", (f"{ours}: {_shown(value)}: {why}" for ours, value, why in self.added)),
            *_part("Different here", (f"{key}: {text}" for key, text in self.differs)),
            *_part("Ignored", (f"{', '.join(keys)}: {why}" for why, keys in self.ignored.items())),
        ]

    def comments(self) -> str:
        """Write down as comments of a YAML file what a reader of the recipe must know."""
        told = [f"{ours}: {why}" for ours, _, why in self.added] + [f"{key}: {text}" for key, text in self.differs]
        return "".join(f"#   {line}\n" for line in told)


def _part(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"{title} ({len(lines)})", *(f"  {line}" for line in lines)] if lines else []


def _pair(each: MappedValue) -> str:
    return f"{each.ours}: {_shown(each.value)}"


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    text = str(text).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]} ..."
