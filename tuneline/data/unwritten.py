"""What rows have and a chat template does not write: some pass over tool calls or functions' schemas in silence."""

import json
from typing import Any

from tuneline.data import render
from tuneline.data.schema import Message, message
from tuneline.errors import DataError

CALLS, SCHEMAS = "calls of functions", "functions' schemas"
MARK = "function_that_marks"
FUNCTION: dict[str, Any] = {"name": MARK, "description": "", "parameters": {"type": "object", "properties": {}}}
CALL: dict[str, Any] = {"name": MARK, "arguments": {}}
CALLING = [
    message("user", "question"),
    message("assistant", "", json.dumps([{"type": "function", "function": CALL}])),
    message("tool", "result"),
    message("assistant", "answer"),
]
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def left_out(tokenizer: Any) -> list[str]:
    """Name what the tokenizer's chat template leaves out: `CALLS`, `SCHEMAS`, both or neither."""
    tried = {CALLS: (CALLING, ""), SCHEMAS: (CALLING[:1], TOOLS)}
    return [what for what, (messages, tools) in tried.items() if not _writes(messages, tools, tokenizer)]


def _writes(messages: list[Message], tools: str, tokenizer: Any) -> bool:
    """Tell whether the mark is written; a template that refuses the trial is asked with real rows anyway."""
    try:
        return MARK in render.apply(messages, tools, tokenizer)
    except DataError:
        return True
