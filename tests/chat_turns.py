"""Turns, tool calls and pairs in several notations, for the tests of dataset formats."""

from tuneline.data import schema
from tuneline.data.align import align

CALL = {"name": "add", "arguments": {"b": 2, "a": 1}}
CALLS_JSON = '[{"type":"function","function":{"name":"add","arguments":{"b":2,"a":1}}}]'
ADD_SCHEMA = {"name": "add", "parameters": {"type": "object"}}
TOOLS_JSON = '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'
PAIR = schema.content(
    [schema.message("user", "a")],
    chosen=[schema.message("assistant", "b")],
    rejected=[schema.message("assistant", "c")],
)


def turns(messages):
    """Return role and content of each message."""
    return [(message["role"], message["content"]) for message in messages]


def align_turns(record, format, **more):
    """Align a record and return the role and the content of each message."""
    return turns(align.align_record(record, format, **more)["messages"])


def human(value):
    """Build a user turn in the ShareGPT notation."""
    return {"from": "human", "value": value}


def gpt(value):
    """Build an assistant turn in the ShareGPT notation."""
    return {"from": "gpt", "value": value}


def user(content):
    """Build a user turn in OpenAI's notation."""
    return {"role": "user", "content": content}


def assistant(content, **more):
    """Build an assistant turn in OpenAI's notation."""
    return {"role": "assistant", "content": content, **more}
