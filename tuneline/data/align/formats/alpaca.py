"""Alpaca: `instruction`, optional `input`, `output`, optional `system` and `history` (Taori et al. 2023)."""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields, preference
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content, message


def align_alpaca(record: Record, tags: Tags) -> Content:
    """Join instruction and input by a line break; earlier rounds come from `history`, a list of pairs.

    A row with `chosen` and `rejected`, or with several answers, is a preference.
    """
    if _is_pair(record):
        return preference.align_preference(record, tags)
    asked = fields.read_question(record, "instruction", "alpaca")
    return content([*asked, message("assistant", fields.required_text(record, "output", "alpaca"))])


def looks_like_alpaca(record: Record) -> bool:
    """Tell whether a record has an instruction and an answer, be they texts or not: it is refused as what it is."""
    return record.get("instruction") is not None and record.get("output") is not None


COLUMNS = frozenset(("instruction", "input", "output", "system", "history"))


def _is_pair(record: Record) -> bool:
    one_answer = isinstance(record.get("output"), str) and "chosen" not in record
    return not one_answer and preference.looks_like_preference(record)


def _keys(record: Record) -> frozenset[str]:
    if _is_pair(record):
        return preference.columns_read(record)
    return COLUMNS


formats.register("alpaca")(Format(align_alpaca, looks_like_alpaca, _keys))
