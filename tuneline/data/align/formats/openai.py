"""OpenAI chat: `messages`, a list of `{"role", "content"}` with optional `tool_calls`, and optional `tools`.

`parallel_tool_calls` has no effect on training and is dropped.
"""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content


def align_openai(record: Record, tags: Tags) -> Content:
    """Keep the messages unchanged; `train: false` or `weight: 0` excludes one from the loss. Adds no system message."""
    if record.get("messages") is None:
        raise fields.missing_field_error(record, "messages", "openai")
    messages = chat.read_messages(record["messages"], "messages", tags, "openai")
    return content(messages, tools=tool_calls.normalize_tools(record.get("tools") or record.get("functions")))


def looks_like_openai(record: Record) -> bool:
    """Return whether a record has messages with roles."""
    messages = record.get("messages")
    return fields.is_list_of_objects(messages) and "role" in messages[0]


COLUMNS = frozenset(("messages", "tools", "functions", "parallel_tool_calls"))


formats.register("openai")(Format(align_openai, looks_like_openai, lambda record: COLUMNS))
