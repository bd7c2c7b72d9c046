"""Content that a chat template does not render: some templates omit tool calls, tool schemas or thinking."""

import json
from typing import Any

from tuneline.data.chat_template import render
from tuneline.data.chat_template.thinking import EmptyThinkingBlock
from tuneline.data.schema import Message, message
from tuneline.errors import DataError

TOOL_CALLS, TOOL_SCHEMAS, TEXT_WITH_TOOL_CALLS = "tool calls", "tool schemas", "text in messages with tool calls"
MARKER = "function_that_marks"
FUNCTION: dict[str, Any] = {"name": MARKER, "description": "", "parameters": {"type": "object", "properties": {}}}
CALL: dict[str, Any] = {"name": MARKER, "arguments": {}}
TOOL_CALL_CHAT = [
    message("user", "question"),
    message("assistant", "", json.dumps([{"type": "function", "function": CALL}])),
    message("tool", "result"),
    message("assistant", "answer"),
]
OTHER_CALL = json.dumps([{"type": "function", "function": CALL | {"name": "other"}}])
TEXT_AND_TOOL_CALL_CHAT = [TOOL_CALL_CHAT[0], message("assistant", MARKER, OTHER_CALL), *TOOL_CALL_CHAT[2:]]
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def find_unsupported(tokenizer: Any) -> list[str]:
    """Return what the chat template omits: any of `TOOL_CALLS`, `TOOL_SCHEMAS` and `TEXT_WITH_TOOL_CALLS`."""
    probes = {
        TOOL_CALLS: (TOOL_CALL_CHAT, ""),
        TOOL_SCHEMAS: (TOOL_CALL_CHAT[:1], TOOLS),
        TEXT_WITH_TOOL_CALLS: (TEXT_AND_TOOL_CALL_CHAT, ""),
    }
    return [content for content, (messages, tools) in probes.items() if not _renders_marker(messages, tools, tokenizer)]


def check_tool_support(messages: list[Message], tools: str, unsupported: list[str]) -> None:
    """Refuse a conversation with content that the template omits.

    Raises:
        TemplateRefusalError: It has such content.
    """
    calling = [turn for turn in messages if turn["tool_calls"]]
    is_present = {
        TOOL_CALLS: bool(calling),
        TOOL_SCHEMAS: bool(tools),
        TEXT_WITH_TOOL_CALLS: any(turn["content"].strip() for turn in calling),
    }
    omitted = next((content for content in unsupported if is_present[content]), None)
    if omitted:
        raise _omission_error(f"The row has {omitted}")


def check_thinking(
    messages: list[Message], rendered: render.RenderedConversation, block: EmptyThinkingBlock | None
) -> None:
    """Refuse an answer whose thinking a template omits, or writes after an empty thinking block.

    Args:
        messages: The conversation.
        rendered: The conversation as the template renders it.
        block: The empty thinking block that the template writes into answers, if any.

    Raises:
        TemplateRefusalError: A located answer has such thinking.
    """
    for span in rendered.answers:
        content, answer = messages[span.message]["content"], rendered.text[span.start : span.end]
        before, tag, _ = content.partition(render.THINK_CLOSE_TAG)
        thinking = render.LEADING_THINK_TAG.sub("", before).strip() if tag else ""
        subject = f"Answer {span.message + 1} has a thinking block ({thinking[:24]!r})"
        if thinking and thinking not in answer:
            raise _omission_error(subject)
        is_closed = rendered.text[: span.start].rstrip().endswith(render.THINK_CLOSE_TAG)
        if thinking and (is_closed or (block and block.length(answer, content))):
            raise render.TemplateRefusalError(
                f"{subject}, and the chat template writes an empty thinking block before it, so the model would learn "
                "to think after its thinking block has ended."
            )


def _omission_error(subject: str) -> render.TemplateRefusalError:
    return render.TemplateRefusalError(
        f"{subject}, and the chat template silently omits this content, so the model would not learn it."
    )


def _renders_marker(messages: list[Message], tools: str, tokenizer: Any) -> bool:
    """Return whether the marker is rendered; True if the template refuses the probe, so that real rows decide.

    Some templates refuse tool results but omit tool calls, so a conversation that ends with the call is tried as well.
    """
    for probe in (messages, messages[:2]):
        try:
            return MARKER in render.apply_chat_template(probe, tools, tokenizer)
        except DataError:
            continue
    return True
