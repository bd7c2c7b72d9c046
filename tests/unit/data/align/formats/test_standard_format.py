"""The standardized format, plain text, and equal content in different formats."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chat_turns import ADD_SCHEMA, CALL, CALLS_JSON, PAIR, TOOLS_JSON, assistant, turns, user
from tuneline.data import schema
from tuneline.data.align import align

# standard and text


@pytest.mark.parametrize("mark", ["", "_"])
def test_the_format_of_the_paper_is_read_with_and_without_underscores(mark):
    call = {"role": "function", "content": json.dumps(CALL)}
    record = {
        "prompt": [user("a")],
        "response": [call],
        "system": "s",
        "tools": json.dumps([ADD_SCHEMA]),
        "images": [""],
    }

    content = align.align_record({f"{mark}{name}": value for name, value in record.items()}, "standard")

    assert turns(content["messages"]) == [("system", "s"), ("user", "a"), ("assistant", "")]
    assert (content["messages"][-1]["tool_calls"], content["tools"]) == (CALLS_JSON, TOOLS_JSON)


def test_two_responses_are_a_pair():
    record = {"prompt": [user("a")], "response": [assistant("b"), assistant("c")], "system": "", "tools": ""}

    assert align.align_record(record, "standard") == PAIR


@pytest.mark.parametrize(
    "content",
    [
        PAIR,
        schema.content(text="x"),
        schema.content([schema.message("user", "a"), schema.message("assistant", "b")], label=True),
        schema.content([schema.message("user", "a"), schema.message("assistant", "b", train=False)]),
        schema.content([schema.message("user", "a"), schema.message("assistant", "", CALLS_JSON)], tools=TOOLS_JSON),
    ],
)
def test_a_standard_example_is_read_unchanged(content):
    example = json.loads(json.dumps(schema.example("s", content)))

    assert align.detect_format([example]) == "standard"
    assert align.align_record(example, "standard") == content


def test_a_text_is_read_unchanged():
    assert align.align_record({"text": " x\n", "meta": 1}, "text") == schema.content(text=" x\n")


# one content, two spellings

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
FUNCTION_CALLS = st.lists(
    st.fixed_dictionaries({"name": WORDS, "arguments": st.dictionaries(WORDS, JSON, max_size=3)}),
    min_size=1,
    max_size=2,
)
FUNCTION_TOOLS = st.lists(st.fixed_dictionaries({"name": WORDS, "parameters": JSON}), max_size=2)


@st.composite
def chats(draw):
    """Draw turns as (role, content, calls): some rounds, of which some call functions before they answer."""
    turns = [("system", draw(WORDS), None)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", draw(WORDS), None))
        if draw(st.booleans()):
            turns.append(("assistant", draw(WORDS | st.just("")), draw(FUNCTION_CALLS)))
            turns += [("tool", draw(WORDS), None)] * draw(st.integers(1, 2))
        turns.append(("assistant", draw(WORDS), None))
    return turns


def as_openai(chat, tools):
    def turn(role, content, calls):
        plain = {"role": role, "content": content or (None if calls else "")}
        if not calls:
            return plain
        packed = [{**call, "arguments": json.dumps(call["arguments"])} for call in calls]
        return {**plain, "tool_calls": [{"id": "x", "type": "function", "function": call} for call in packed]}

    schemas = [{"type": "function", "function": tool} for tool in tools]
    return {"messages": [turn(*values) for values in chat], "tools": schemas}


def as_sharegpt(chat, tools):
    speakers = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turns_of_record = []
    for role, content, calls in chat:
        if content or not calls:
            turns_of_record.append({"from": speakers[role], "value": content})
        if calls:
            turns_of_record.append({"from": "function_call", "value": json.dumps(calls)})
    return {"conversations": turns_of_record, "tools": json.dumps(tools)}


@given(chat=chats(), tools=FUNCTION_TOOLS)
def test_a_chat_is_equal_in_openai_and_sharegpt_format(chat, tools):
    first = align.align_record(as_openai(chat, tools), "openai")
    second = align.align_record(as_sharegpt(chat, tools), "sharegpt")

    assert first == second
    assert schema.content_id(first) == schema.content_id(second)
    assert turns(first["messages"]) == [(role, content) for role, content, _ in chat]
    calls = [json.loads(turn["tool_calls"]) if turn["tool_calls"] else None for turn in first["messages"]]
    assert [called and [call["function"] for call in called] for called in calls] == [calls for _, _, calls in chat]


@given(chat=chats(), tools=FUNCTION_TOOLS)
def test_an_example_keeps_its_id_after_a_round_trip(chat, tools):
    content = align.align_record(as_openai(chat, tools), "openai")

    restored = align.align_record(orjson.loads(orjson.dumps(schema.example("s", content))), "standard")

    assert schema.content_id(restored) == schema.content_id(content)
