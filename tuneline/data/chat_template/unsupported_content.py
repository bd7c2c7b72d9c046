"""What rows have and a chat template does not write: some pass over tool calls, functions' schemas or thoughts."""

import json
from typing import Any

from tuneline.data.chat_template import render
from tuneline.data.chat_template.thinking import EmptyBlock
from tuneline.data.schema import Message, message
from tuneline.errors import DataError

CALLS, SCHEMAS, TEXTS = "calls of functions", "functions' schemas", "texts beside calls of functions"
MARK = "function_that_marks"
FUNCTION: dict[str, Any] = {"name": MARK, "description": "", "parameters": {"type": "object", "properties": {}}}
CALL: dict[str, Any] = {"name": MARK, "arguments": {}}
CALLING = [
    message("user", "question"),
    message("assistant", "", json.dumps([{"type": "function", "function": CALL}])),
    message("tool", "result"),
    message("assistant", "answer"),
]
OTHER_CALL = json.dumps([{"type": "function", "function": CALL | {"name": "other"}}])
SAYING = [CALLING[0], message("assistant", MARK, OTHER_CALL), *CALLING[2:]]
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def left_out(tokenizer: Any) -> list[str]:
    """Name what the tokenizer's chat template leaves out: any of `CALLS`, `SCHEMAS` and `TEXTS`."""
    tried = {CALLS: (CALLING, ""), SCHEMAS: (CALLING[:1], TOOLS), TEXTS: (SAYING, "")}
    return [what for what, (messages, tools) in tried.items() if not _writes(messages, tools, tokenizer)]


def check(messages: list[Message], tools: str, left_out: list[str]) -> None:
    """Refuse a conversation that has what a template leaves out.

    Raises:
        RefusedError: It has some.
    """
    calling = [turn for turn in messages if turn["tool_calls"]]
    has = {CALLS: bool(calling), SCHEMAS: bool(tools), TEXTS: any(turn["content"].strip() for turn in calling)}
    lost = next((what for what in left_out if has[what]), None)
    if lost:
        raise _lost(f"The row has {lost}")


def check_thoughts(messages: list[Message], rendered: render.Rendered, block: EmptyBlock | None) -> None:
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
        before, closed, _ = content.partition(render.CLOSING)
        thoughts = render.OPENING.sub("", before).strip() if closed else ""
        has = f"Answer {turn.message + 1} has thoughts ({thoughts[:24]!r})"
        if thoughts and thoughts not in answer:
            raise _lost(has)
        is_closed = rendered.text[: turn.start].rstrip().endswith(render.CLOSING)
        if thoughts and (is_closed or (block and block.length(answer, content))):
            raise render.RefusedError(
                f"{has}, and the chat template writes an empty thinking block in front of them, so the model would "
                "learn to think after it has stopped thinking."
            )


def _lost(what: str) -> render.RefusedError:
    return render.RefusedError(
        f"{what}, and the chat template leaves them out in silence, so they would not be learned."
    )


def _writes(messages: list[Message], tools: str, tokenizer: Any) -> bool:
    """Tell whether the mark is written; a template that refuses the trial is asked with real rows anyway.

    Some refuse results of functions and pass over the calls, so a conversation that ends with the call is tried, too.
    """
    for tried in (messages, messages[:2]):
        try:
            return MARK in render.apply(tried, tools, tokenizer)
        except DataError:
            continue
    return True
