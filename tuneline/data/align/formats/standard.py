"""The standardized format of the LlamaFactory paper (Zheng et al. 2024), and Tuneline's own examples.

`{"prompt": [...], "response": [...], "system": "", "tools": ""}`, with or without an underscore before each key; two
responses are a pair. In the paper, a `function` turn is a call and an `observation` is its result.
"""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, Message, content
from tuneline.errors import DataError

EXAMPLE_COLUMNS = frozenset(("messages", "tools", "chosen", "rejected", "label", "text"))
PAPER_COLUMNS = frozenset(
    f"{prefix}{name}" for prefix in ("", "_") for name in ("prompt", "response", "system", "tools")
)


def align_standard(record: Record, tags: Tags) -> Content:
    """Read prompt and response; of two responses, the first is chosen and the second rejected."""
    if record.keys() >= EXAMPLE_COLUMNS:
        return read_example(record, tags)
    plain = {name.removeprefix("_"): value for name, value in record.items()}
    for name in ("prompt", "response"):
        if plain.get(name) is None:
            raise fields.missing_field_error(record, name, "standard", [f"_{name}"])
    prompt = [*fields.read_system(plain), *chat.read_messages(plain["prompt"], "prompt", tags, "paper")]
    answers = chat.read_messages(plain["response"], "response", tags, "paper")
    tools = tool_calls.normalize_tools(plain.get("tools"))
    if len(answers) == 1:
        return content([*prompt, *answers], tools=tools)
    if len(answers) > 2:
        raise DataError(f"'response' must hold one answer or a pair, got {len(answers)}.", "more than two responses")
    return content(prompt, tools=tools, chosen=answers[:1], rejected=answers[1:])


def read_example(record: Record, tags: Tags) -> Content:
    """Read an example in Tuneline's own schema; absent columns are empty."""
    label = record.get("label")
    if label is not None and not isinstance(label, bool):
        raise DataError(f"'label' must be true or false, got {label!r:.60}.", "label is neither true nor false")
    return content(
        _read_turns(record, "messages", tags),
        tools=tool_calls.normalize_tools(record.get("tools")),
        chosen=_read_turns(record, "chosen", tags),
        rejected=_read_turns(record, "rejected", tags),
        label=label,
        text=fields.optional_text(record, "text"),
    )


def _read_turns(record: Record, name: str, tags: Tags) -> list[Message]:
    value = record.get(name)
    return chat.read_messages(value, name, tags, "openai") if value else []


def looks_like_standard(record: Record) -> bool:
    """Return whether a record has prompt and response as turns, or all columns of an example."""
    return record.keys() >= EXAMPLE_COLUMNS or any(
        _are_turns(record.get(f"{prefix}prompt")) and _are_turns(record.get(f"{prefix}response"))
        for prefix in ("", "_")
    )


def _are_turns(value: Any) -> bool:
    return fields.is_list_of_objects(value)


def _columns_read(record: Record) -> frozenset[str]:
    return EXAMPLE_COLUMNS | {"id", "source", "copy"} if record.keys() >= EXAMPLE_COLUMNS else PAPER_COLUMNS


formats.register("standard")(Format(align_standard, looks_like_standard, _columns_read))
