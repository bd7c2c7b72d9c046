"""What rows have and a chat template does not write: some pass over tool calls or functions' schemas in silence."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from tuneline.data import corpus, render
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


def unwritten(examples: Dataset, tokenizer: Any) -> list[str]:
    """Name what some examples have and the tokenizer's chat template leaves out."""
    lost = left_out(tokenizer)
    has = {CALLS: _num_calls, SCHEMAS: _num_tools}
    return [what for what in lost if _any(examples, has[what])]


def left_out(tokenizer: Any) -> list[str]:
    """Name what the tokenizer's chat template leaves out: `CALLS`, `SCHEMAS`, both or neither."""
    tried = {CALLS: (CALLING, ""), SCHEMAS: (CALLING[:1], TOOLS)}
    return [what for what, (messages, tools) in tried.items() if not _writes(messages, tools, tokenizer)]


def _any(examples: Dataset, count: Any) -> bool:
    return any(count(batch) for batch in corpus.batches(examples))


def _num_calls(batch: pa.RecordBatch) -> int:
    turns = batch.column("messages").values
    return len(turns) - int(turns.field("tool_calls").null_count)


def _num_tools(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.not_equal(batch.column("tools"), "")).as_py() or 0)


def _writes(messages: list[Message], tools: str, tokenizer: Any) -> bool:
    """Tell whether the mark is written; a template that refuses the trial is asked with real rows anyway."""
    try:
        return MARK in render.apply(messages, tools, tokenizer)
    except DataError:
        return True
