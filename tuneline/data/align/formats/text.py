"""Text to continue, for pre-training: `text`."""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import fields
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content
from tuneline.errors import DataError


def align_text(record: Record, tags: Tags) -> Content:
    """Take the text as it is."""
    said = fields.required_text(record, "text", "text")
    if not said or said.isspace():
        raise DataError("the text is empty.", "empty text")
    return content(text=said)


def looks_like_text(record: Record) -> bool:
    """Tell whether a record has a text, or something else in its place."""
    return record.get("text") is not None


COLUMNS = frozenset(("text",))


formats.register("text")(Format(align_text, looks_like_text, lambda record: COLUMNS))
