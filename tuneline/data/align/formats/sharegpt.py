"""ShareGPT: `conversations`, a list of `{"from", "value"}`, with optional `system` and `tools` beside it.

Speakers are known in every common spelling. A `function_call` turn holds one call or a list of them as JSON.
"""

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, content


def align_sharegpt(record: Record, tags: Tags) -> Content:
    """Translate the roles; `system` beside the conversation comes first."""
    name = fields.first_present(record, fields.TURN_COLUMNS)
    if name is None:
        raise fields.missing_field_error(record, "conversations", "sharegpt", fields.TURN_COLUMNS)
    said = chat.read_messages(record[name], name, tags)
    return content([*fields.read_system(record), *said], tools=tool_calls.normalize_tools(record.get("tools")))


def looks_like_sharegpt(record: Record) -> bool:
    """Tell whether a record has turns, and is not in OpenAI's words."""
    name = fields.first_present(record, fields.TURN_COLUMNS)
    if name is None or not fields.is_list_of_objects(record[name]):
        return False
    return name != "messages" or "role" not in record[name][0]


def _keys(record: Record) -> frozenset[str]:
    return frozenset((fields.first_present(record, fields.TURN_COLUMNS) or "conversations", "system", "tools"))


formats.register("sharegpt")(Format(align_sharegpt, looks_like_sharegpt, _keys))
