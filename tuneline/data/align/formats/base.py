"""The protocol of a dataset format, and the registry of formats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.schema import Content
from tuneline.registry import Registry

Record = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A dataset format.

    `align` converts a record, whose columns are already renamed to those of the format, to the content of an example.
    `matches` returns whether a record looks like the format. `keys` returns the columns that the format reads of a
    record, if they are known.
    """

    align: Callable[[Record, Tags], Content]
    matches: Callable[[Record], bool]
    keys: Callable[[Record], frozenset[str]] | None = None


formats: Registry[Format] = Registry("format")
