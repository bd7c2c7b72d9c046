"""Tables of LlamaFactory's keys (`keys.yaml`) and chat templates (`templates.yaml`)."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from tuneline.config.base import Config

KEYS = Path(__file__).with_name("keys.yaml")
TEMPLATES = Path(__file__).with_name("templates.yaml")

UNSET = (None, "", False, "no", "none")
"""Values that disable a key."""


class ChangedKeys(Config):
    """Keys with a different meaning in Tuneline."""

    reason: str
    keys: dict[str, Any]
    """Key -> its neutral value, which has no effect."""


class IgnoredKeys(Config):
    """Keys that affect neither weights nor scores."""

    reason: str
    keys: list[str]


class UnsupportedKeys(ChangedKeys):
    """Keys without a counterpart."""

    fix: str


class KeyTable(Config):
    """All keys, by how they are handled."""

    mapped: dict[str, str]
    """Key -> key of the recipe."""

    differs: list[ChangedKeys]
    ignored: list[IgnoredKeys]
    unsupported: list[UnsupportedKeys]

    def all_keys(self) -> list[str]:
        """Return all keys."""
        groups: list[Iterable[str]] = [group.keys for group in (*self.differs, *self.unsupported)]
        groups += [group.keys for group in self.ignored]
        return [*self.mapped, *(key for group in groups for key in group)]


class KnownTemplate(Config):
    """A LlamaFactory template that is also built into Tuneline."""

    builtin: str
    """Name of the built-in template."""

    system: str | None = None
    differs: str | None = None


class TemplateTable(Config):
    """LlamaFactory's chat templates."""

    same: dict[str, KnownTemplate]
    thinking: list[str] = Field(default_factory=list)
    """Templates of reasoning models, which rewrite earlier messages."""

    others: list[str] = Field(default_factory=list)

    def all_names(self) -> list[str]:
        """Return all template names."""
        return [*self.same, *self.thinking, *self.others]


@cache
def table() -> KeyTable:
    """Return the table of keys."""
    return KeyTable.model_validate(yaml.safe_load(KEYS.read_text(encoding="utf-8")))


@cache
def templates() -> TemplateTable:
    """Return the table of templates."""
    return TemplateTable.model_validate(yaml.safe_load(TEMPLATES.read_text(encoding="utf-8")))


def is_neutral(value: Any, neutral: Any) -> bool:
    """Return whether a key's value has no effect."""
    if value in UNSET and neutral in UNSET:
        return True
    parsed = _parse(value) if isinstance(value, str) and isinstance(neutral, bool | int | float) else value
    return bool(parsed == neutral)


def _parse(value: str) -> Any:
    """Parse a number that YAML reads as a string, like `1e-6`."""
    try:
        return float(value)
    except ValueError:
        return yaml.safe_load(value) if value.lower() in ("true", "false") else value


def to_markdown() -> str:
    """Return the table as Markdown."""
    keys = table()
    mapped = [f"| `{key}` | `{recipe_key}` |" for key, recipe_key in keys.mapped.items()]
    lines = ["| LlamaFactory key | recipe key |", "|---|---|", *mapped, "", "## Keys with different behavior", ""]
    lines += ["| key | behavior |", "|---|---|", *(_row(group.keys, group.reason) for group in keys.differs), ""]
    lines += ["## Unsupported keys", "", "| key and its neutral value | reason | what to do |", "|---|---|---|"]
    lines += [
        f"{_row([f'{key}: {_format(value)}' for key, value in group.keys.items()], group.reason)} {group.fix} |"
        for group in keys.unsupported
    ]
    lines += ["", "## Ignored keys", "", "| key | reason |", "|---|---|"]
    return "\n".join([*lines, *(_row(group.keys, group.reason) for group in keys.ignored)]) + "\n"


def _row(keys: Iterable[str], reason: str) -> str:
    return f"| {', '.join(f'`{key}`' for key in keys)} | {reason} |"


def _format(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n").removesuffix("\n...")
