"""What formats share: their registry, and how they ask a record for its fields."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.schema import Content
from tuneline.registry import Registry

Record = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    `align` turns a record, whose columns already carry the format's names, into what it says; `matches` tells whether
    a record looks like it; `keys` returns the columns that are read of a record, where that is known.
    """

    align: Callable[[Record, Tags], Content]
    matches: Callable[[Record], bool]
    keys: Callable[[Record], frozenset[str]] | None = None


formats: Registry[Format] = Registry("format")
