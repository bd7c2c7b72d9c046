"""What rows have and a chat template does not write: some pass over tool calls, functions' schemas or thoughts."""

import json
from typing import Any

from tuneline.data.chat_template import render
from tuneline.data.chat_template.thinking import EmptyThinkingBlock
from tuneline.data.schema import Message, message
from tuneline.errors import DataError

TOOL_CALLS, TOOL_SCHEMAS, TEXT_WITH_TOOL_CALLS = (
    "calls of functions",
    "functions' schemas",
    "texts beside calls of functions",
)
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
    """Name what the tokenizer's chat template leaves out: any of `CALLS`, `SCHEMAS` and `TEXTS`."""
    tried = {
        TOOL_CALLS: (TOOL_CALL_CHAT, ""),
        TOOL_SCHEMAS: (TOOL_CALL_CHAT[:1], TOOLS),
        TEXT_WITH_TOOL_CALLS: (TEXT_AND_TOOL_CALL_CHAT, ""),
    }
    return [what for what, (messages, tools) in tried.items() if not _writes(messages, tools, tokenizer)]


def check_tool_support(messages: list[Message], tools: str, left_out: list[str]) -> None:
    """Refuse a conversation that has what a template leaves out.

    Raises:
        RefusedError: It has some.
    """
    calling = [turn for turn in messages if turn["tool_calls"]]
    has = {
        TOOL_CALLS: bool(calling),
        TOOL_SCHEMAS: bool(tools),
        TEXT_WITH_TOOL_CALLS: any(turn["content"].strip() for turn in calling),
    }
    lost = next((what for what in left_out if has[what]), None)
    if lost:
        raise _lost(f"The row has {lost}")


def check_thinking(
    messages: list[Message], rendered: render.RenderedConversation, block: EmptyThinkingBlock | None
) -> None:
    """Refuse an answer whose thoughts a template does not write, or writes behind an empty thinking block.

    Args:
        messages: The conversation.
        rendered: As a template writes it.
        block: The empty thinking block that the template writes into answers, if it does.

    Raises:
        RefusedError: An answer that is looked for has such thoughts.
    """
    for turn in rendered.turns:
        content, answer = messages[turn.message]["content"], rendered.text[turn.start : turn.end]
        before, closed, _ = content.partition(render.THINK_CLOSE_TAG)
        thoughts = render.LEADING_THINK_TAG.sub("", before).strip() if closed else ""
        has = f"Answer {turn.message + 1} has thoughts ({thoughts[:24]!r})"
        if thoughts and thoughts not in answer:
            raise _lost(has)
        is_closed = rendered.text[: turn.start].rstrip().endswith(render.THINK_CLOSE_TAG)
        if thoughts and (is_closed or (block and block.length(answer, content))):
            raise render.TemplateRefusalError(
                f"{has}, and the chat template writes an empty thinking block in front of them, so the model would "
                "learn to think after it has stopped thinking."
            )


def _lost(what: str) -> render.TemplateRefusalError:
    return render.TemplateRefusalError(
        f"{what}, and the chat template leaves them out in silence, so they would not be learned."
    )


def _writes(messages: list[Message], tools: str, tokenizer: Any) -> bool:
    """Tell whether the mark is written; a template that refuses the trial is asked with real rows anyway.

    Some refuse results of functions and pass over the calls, so a conversation that ends with the call is tried, too.
    """
    for tried in (messages, messages[:2]):
        try:
            return MARKER in render.apply_chat_template(tried, tools, tokenizer)
        except DataError:
            continue
    return True
