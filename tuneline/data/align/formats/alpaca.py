"""Alpaca: `instruction`, optional `input`, `output`, optional `system` and `history` (Taori et al. 2023)."""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields, preference
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content, message


def align_alpaca(record: Record, tags: Tags) -> Content:
    """Join instruction and input with a line break; `history`, a list of pairs, holds earlier rounds.

    A row with `chosen` and `rejected`, or with several answers, is a preference.
    """
    if _is_pair(record):
        return preference.align_preference(record, tags)
    prompt = fields.read_question(record, "instruction", "alpaca")
    return content([*prompt, message("assistant", fields.required_text(record, "output", "alpaca"))])


def looks_like_alpaca(record: Record) -> bool:
    """Return whether a record has an instruction and an answer of any type; other types are refused later."""
    return record.get("instruction") is not None and record.get("output") is not None


COLUMNS = frozenset(("instruction", "input", "output", "system", "history"))


def _is_pair(record: Record) -> bool:
    has_one_answer = isinstance(record.get("output"), str) and "chosen" not in record
    return not has_one_answer and preference.looks_like_preference(record)


def _columns_read(record: Record) -> frozenset[str]:
    if _is_pair(record):
        return preference.columns_read(record)
    return COLUMNS


formats.register("alpaca")(Format(align_alpaca, looks_like_alpaca, _columns_read))
