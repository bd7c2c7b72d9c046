"""OpenAI chat: `messages`, a list of `{"role", "content"}`, with `tool_calls` in it and `tools` beside it.

`parallel_tool_calls` beside the messages says nothing that is trained, and is left out.
"""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content


def align_openai(record: Record, tags: Tags) -> Content:
    """Take the messages as they are; `train: false` or `weight: 0` leaves one out of the loss. No system is added."""
    if record.get("messages") is None:
        raise fields.missing_field_error(record, "messages", "openai")
    said = chat.read_messages(record["messages"], "messages", tags, "openai")
    return content(said, tools=tool_calls.normalize_tools(record.get("tools") or record.get("functions")))


def looks_like_openai(record: Record) -> bool:
    """Tell whether a record has messages with roles."""
    said = record.get("messages")
    return fields.is_list_of_objects(said) and "role" in said[0]


COLUMNS = frozenset(("messages", "tools", "functions", "parallel_tool_calls"))


formats.register("openai")(Format(align_openai, looks_like_openai, lambda record: COLUMNS))
