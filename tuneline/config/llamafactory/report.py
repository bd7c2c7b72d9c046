"""Report of an import: what happened to each key of the file."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_VALUE_LENGTH = 100
"""Maximum number of characters shown of a value."""


@dataclass(frozen=True)
class MappedValue:
    """A value of the recipe, and the LlamaFactory keys it comes from."""

    recipe_key: str
    value: Any
    keys: tuple[str, ...]
    is_set: bool
    """False if the file omits the keys and the value is LlamaFactory's default."""


@dataclass
class ImportReport:
    """What happened to each key of a file."""

    mapped: list[MappedValue] = field(default_factory=list)
    differs: list[tuple[str, str]] = field(default_factory=list)
    """Key, and its meaning in Tuneline."""

    added: list[tuple[str, Any, str]] = field(default_factory=list)
    """Key of the recipe, its value, and the reason for it."""

    ignored: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> keys."""

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        explicit = [f"{', '.join(value.keys)} -> {_pair(value)}" for value in self.mapped if value.is_set]
        defaults = [f"{_pair(value)} ({', '.join(value.keys)})" for value in self.mapped if not value.is_set]
        return [
            *_section("Mapped", explicit),
            *_section("Not set in the file, LlamaFactory's default used", defaults),
            *_section("Added", (f"{key}: {_format(value)}: {reason}" for key, value, reason in self.added)),
            *_section("Different in Tuneline", (f"{key}: {text}" for key, text in self.differs)),
            *_section("Ignored", (f"{', '.join(keys)}: {reason}" for reason, keys in self.ignored.items())),
        ]

    def comments(self) -> str:
        """Return the differences as YAML comments."""
        lines = [f"{key}: {reason}" for key, _, reason in self.added]
        lines += [f"{key}: {text}" for key, text in self.differs]
        return "".join(f"#   {line}\n" for line in lines)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"{title} ({len(lines)})", *(f"  {line}" for line in lines)] if lines else []


def _pair(mapped: MappedValue) -> str:
    return f"{mapped.recipe_key}: {_format(mapped.value)}"


def _format(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    text = str(text).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]} ..."
