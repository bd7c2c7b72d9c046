"""ShareGPT: `conversations`, a list of `{"from", "value"}`, with optional `system` and `tools` columns.

All common names of speakers are supported. A `function_call` turn holds one call or a list of calls as JSON.
"""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content


def align_sharegpt(record: Record, tags: Tags) -> Content:
    """Translate the roles; the `system` column becomes the first message."""
    name = fields.first_present(record, fields.TURN_COLUMNS)
    if name is None:
        raise fields.missing_field_error(record, "conversations", "sharegpt", fields.TURN_COLUMNS)
    messages = chat.read_messages(record[name], name, tags)
    return content([*fields.read_system(record), *messages], tools=tool_calls.normalize_tools(record.get("tools")))


def looks_like_sharegpt(record: Record) -> bool:
    """Return whether a record has turns that are not in OpenAI's format."""
    name = fields.first_present(record, fields.TURN_COLUMNS)
    if name is None or not fields.is_list_of_objects(record[name]):
        return False
    return name != "messages" or "role" not in record[name][0]


def _columns_read(record: Record) -> frozenset[str]:
    return frozenset((fields.first_present(record, fields.TURN_COLUMNS) or "conversations", "system", "tools"))


formats.register("sharegpt")(Format(align_sharegpt, looks_like_sharegpt, _columns_read))
