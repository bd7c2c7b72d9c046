"""The tables of LlamaFactory's keys (`keys.yaml`) and chat templates (`templates.yaml`), as data."""

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
"""Ways to write that a key is not used."""


class ChangedKeys(Config):
    """Keys that mean something else here."""

    because: str
    keys: dict[str, Any]
    """Key -> its neutral value, which means nothing."""


class IgnoredKeys(Config):
    """Keys that change no weight and no score."""

    because: str
    keys: list[str]


class UnsupportedKeys(ChangedKeys):
    """Keys that nothing here answers to."""

    instead: str


class KeyTable(Config):
    """All keys, by what becomes of them."""

    taken: dict[str, str]
    """Key -> where its value goes in a recipe."""

    differs: list[ChangedKeys]
    ignored: list[IgnoredKeys]
    no_counterpart: list[UnsupportedKeys]

    def known(self) -> list[str]:
        """Return every key."""
        judged: list[Iterable[str]] = [group.keys for group in (*self.differs, *self.no_counterpart)]
        judged += [group.keys for group in self.ignored]
        return [*self.taken, *(key for group in judged for key in group)]


class KnownTemplate(Config):
    """A template that our catalogue has, too."""

    ours: str
    system: str | None = None
    differs: str | None = None


class TemplateTable(Config):
    """LlamaFactory's chat templates."""

    same: dict[str, KnownTemplate]
    thinking: list[str] = Field(default_factory=list)
    """Of models that think, and whose template rewrites earlier turns."""

    others: list[str] = Field(default_factory=list)

    def known(self) -> list[str]:
        """Return every name."""
        return [*self.same, *self.thinking, *self.others]


@cache
def table() -> KeyTable:
    """Read the table of keys."""
    return KeyTable.model_validate(yaml.safe_load(KEYS.read_text(encoding="utf-8")))


@cache
def templates() -> TemplateTable:
    """Read the table of templates."""
    return TemplateTable.model_validate(yaml.safe_load(TEMPLATES.read_text(encoding="utf-8")))


def is_neutral(value: Any, neutral: Any) -> bool:
    """Tell whether a key is written and means nothing."""
    if value in UNSET and neutral in UNSET:
        return True
    said = _spoken(value) if isinstance(value, str) and isinstance(neutral, bool | int | float) else value
    return bool(said == neutral)


def _spoken(value: str) -> Any:
    """Read a number that YAML took for text, like `1e-6`."""
    try:
        return float(value)
    except ValueError:
        return yaml.safe_load(value) if value.lower() in ("true", "false") else value


def to_markdown() -> str:
    """Render the table for readers."""
    found = table()
    taken = [f"| `{theirs}` | `{ours}` |" for theirs, ours in found.taken.items()]
    lines = ["| LlamaFactory key | recipe key |", "|---|---|", *taken, "", "## Keys with different behavior", ""]
    lines += ["| key | behavior |", "|---|---|", *(_row(each.keys, each.because) for each in found.differs), ""]
    lines += ["## Unsupported keys", "", "| key and its neutral value | reason | what to do |", "|---|---|---|"]
    lines += [
        f"{_row([f'{key}: {_shown(value)}' for key, value in each.keys.items()], each.because)} {each.instead} |"
        for each in found.no_counterpart
    ]
    lines += ["", "## Ignored keys", "", "| key | reason |", "|---|---|"]
    return "\n".join([*lines, *(_row(each.keys, each.because) for each in found.ignored)]) + "\n"


def _row(keys: Iterable[str], because: str) -> str:
    return f"| {', '.join(f'`{key}`' for key in keys)} | {because} |"


def _shown(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n").removesuffix("\n...")
