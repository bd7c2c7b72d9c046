"""The one shape of an example, whatever format it came in (the paper's "standardized data", in chat vocabulary).

Values of unknown shape (tool calls, function schemas) travel as canonical JSON text: Arrow unifies the keys of structs
over all rows and fills them with nulls, which would change what is rendered.
"""

from typing import Any, TypedDict

from datasets import Features, List, Value

from tuneline.identity import digest


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str
    tool_calls: str | None
    train: bool | None


_MESSAGES = List(
    {"role": Value("string"), "content": Value("string"), "tool_calls": Value("string"), "train": Value("bool")}
)

RECORD = Features({"file": Value("string"), "line": Value("int64"), "record": Value("large_string")})

EXAMPLE = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "messages": _MESSAGES,
        "tools": Value("string"),
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "label": Value("bool"),
        "text": Value("string"),
    }
)


def message(role: str, content: str, tool_calls: str | None = None, train: bool | None = None) -> Message:
    """Build a turn."""
    return {"role": role, "content": content, "tool_calls": tool_calls, "train": train}


def example(source: str, messages: list[Message], tools: str = "") -> dict[str, Any]:
    """Build an example for supervised fine-tuning; its id is the hash of its content, whatever data set it is from."""
    content = {"messages": messages, "tools": tools, "chosen": [], "rejected": [], "label": None, "text": ""}
    return {"id": digest(content), "source": source, **content}
