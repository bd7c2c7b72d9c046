"""Plain text for pretraining: one `text` column."""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content
from tuneline.errors import DataError


def align_text(record: Record, tags: Tags) -> Content:
    """Keep the text unchanged."""
    text = fields.required_text(record, "text", "text")
    if not text or text.isspace():
        raise DataError("the text is empty.", "empty text")
    return content(text=text)


def looks_like_text(record: Record) -> bool:
    """Return whether a record has a `text` column of any type; other types are refused later."""
    return record.get("text") is not None


COLUMNS = frozenset(("text",))


formats.register("text")(Format(align_text, looks_like_text, lambda record: COLUMNS))
