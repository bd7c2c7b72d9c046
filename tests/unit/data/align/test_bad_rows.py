"""Rows that cannot be used: refused with their line, or dropped and counted."""

import pytest

from tests.data_rows import ALPACA, FIX_ROW, OPENAI, QUESTIONS, SHAREGPT, alpaca, lines, openai, sharegpt
from tuneline.errors import DataError

pytestmark = pytest.mark.usefixtures("home")

ROLES = "assistant, developer, function, system, tool, user"
SPEAKERS = (
    "assistant, bard, bing, bot, chatbot, chatgpt, claude, customer, developer, function_call, function_response, gpt, "
    "gpt-4, gpt4, human, ipython, model, observation, prompter, sys, system, tool, tool_call, tool_calls, "
    "tool_response, tool_result, user, usr"
)


# rows

IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
ROWS = {
    "list for an output": (
        [*ALPACA[:3], alpaca("a", ["b"])],
        {},
        "d.jsonl:4: 'output' must be text, got list ['b'].",
    ),
    "lists for all outputs": (
        [alpaca(f"q{i}", ["b"]) for i in range(9)],
        {},
        "d.jsonl:1: 'output' must be text, got list ['b'].",
    ),
    "nested instruction": (
        [alpaca({"text": f"q{i}"}, "b") for i in range(9)],
        {},
        "d.jsonl:1: 'instruction' must be text, got dict {'text': 'q0'}.",
    ),
    "nested text": ([{"text": {"en": "a"}}] * 9, {}, "d.jsonl:1: 'text' must be text, got dict {'en': 'a'}."),
    "no output": (
        [*ALPACA[:3], {"instruction": "a", "input": ""}],
        {},
        "d.jsonl:4: a row in alpaca format needs 'output'; it has ['input', 'instruction'].",
    ),
    "null for an output": (
        [*ALPACA[:3], alpaca("a", None)],
        {},
        "d.jsonl:4: a row in alpaca format needs 'output', but it is null.",
    ),
    "empty output": ([*ALPACA[:3], alpaca("a", "")], {}, "d.jsonl:4: turn 2 (assistant) is empty."),
    "an input without an instruction": (
        [*ALPACA[:3], {"instruction": "", "input": "a", "output": "b"}],
        {},
        "d.jsonl:4: 'instruction' is empty but 'input' is 'a'. If 'input' holds the question, set columns: "
        "{instruction: input}.",
    ),
    "a pair that carries no loss": (
        [{"prompt": "a", "chosen": "b", "rejected": "c", "train": False}],
        {},
        "d.jsonl:1: the row has 'train': false, which is supported in turns only. Remove the row, or set it in the "
        "turns without loss.",
    ),
    "a transcript without an answer": (
        [
            {"chosen": f"\n\nHuman: a\n\nAssistant: {good}", "rejected": "\n\nHuman: a\n\nAssistant: no"}
            for good in ("b", "")
        ],
        {},
        "d.jsonl:2: turn 2 (assistant) is empty.",
    ),
    "blank instruction": ([*ALPACA[:3], alpaca(" \n", "b")], {}, "d.jsonl:4: turn 1 (user) is empty."),
    "misspelt column": (
        [{"question": "a", "answer": "b"}],
        {"format": "alpaca", "columns": {"instruction": "questoin", "output": "answer"}},
        "d.jsonl:1: the row has no column 'questoin'; it has ['answer', 'question']. Did you mean 'question'? Correct "
        "columns.instruction.",
    ),
    "other columns further on": (
        [*ALPACA[:3], {"question": "a", "answer": "b"}],
        {},
        "d.jsonl:4: a row in alpaca format needs 'instruction'; it has ['answer', 'question'].",
    ),
    "all roles unknown": (
        [sharegpt(("person", "a"), ("machine", "b"))] * 9,
        {},
        f"d.jsonl:1: unknown role 'person'. Known: {SPEAKERS}. Map other names in tags.",
    ),
    "a role misspelt": (
        [*OPENAI, openai(("user", "a"), ("asistant", "b"))],
        {},
        f"d.jsonl:41: unknown role 'asistant'. Did you mean 'assistant'? Known: {ROLES}. Map other names in tags.",
    ),
    "two system messages": (
        [*OPENAI, openai(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d"))],
        {},
        "d.jsonl:41: the conversation has two system messages.",
    ),
    "no answer": (
        [*OPENAI, openai(("user", "c"))],
        {},
        "d.jsonl:41: the conversation ends with a user turn, so it has no answer to train on.",
    ),
    "no turns": (
        [*OPENAI, {"messages": []}],
        {},
        "d.jsonl:41: 'messages' must be a list of messages, got [].",
    ),
    "two questions": (
        [*SHAREGPT, sharegpt(("human", "a"), ("human", "b"), ("gpt", "c"))],
        {},
        "d.jsonl:41: turn 2 (user) follows a turn of role user.",
    ),
    "a call that is not JSON": (
        [*SHAREGPT, sharegpt(("human", "a"), ("function_call", "call it!"), ("observation", "1"), ("gpt", "b"))],
        {},
        "d.jsonl:41: a tool call is not valid JSON: Expecting value: line 1 column 1 (char 0), in 'call it!'.",
    ),
    "a call without a name": (
        [*SHAREGPT, sharegpt(("human", "a"), ("function_call", '{"arguments": {}}'))],
        {},
        "d.jsonl:41: a tool call must be an object with a name, got {'arguments': {}}.",
    ),
    "tools that are not JSON": (
        [*SHAREGPT, sharegpt(("human", "a"), ("gpt", "b"), tools="get_weather")],
        {},
        "d.jsonl:41: a tool is not valid JSON: Expecting value: line 1 column 1 (char 0), in 'get_weather'.",
    ),
    "a column of images": (
        [openai(("user", "a"), ("assistant", "b"), images=["a.png"])],
        {},
        "d.jsonl:1: column 'images' holds ['a.png']. Tuneline trains on text only.",
    ),
    "an image in a turn": (
        [*OPENAI, openai(("user", IMAGE), ("assistant", "b"))],
        {},
        'd.jsonl:41: a part of a content must be {"type": "text", "text": ...}, got '
        "{'type': 'image_url', 'image_url': {'url': 'x'}}. Tuneline reads text only.",
    ),
    "two equal answers": (
        [{"prompt": "a", "chosen": "b", "rejected": "b"}],
        {},
        "d.jsonl:1: chosen and rejected are the same.",
    ),
    "a label that is a number": (
        [{"prompt": "a", "completion": "b", "label": 1}],
        {},
        "d.jsonl:1: 'label' must be true or false, got int 1.",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_used_is_refused_with_its_line(case, error_of):
    rows, source, expected = ROWS[case]

    assert error_of({"d.jsonl": lines(*rows)}, source) == (DataError, f"{expected} {FIX_ROW}")


@pytest.mark.parametrize("case", [name for name, (rows, _, _) in ROWS.items() if len(rows) > 30])
def test_dropped_rows_are_counted_and_the_others_are_trained_on(case, prepare, caplog):
    rows, source, _ = ROWS[case]

    counts = prepare({"d.jsonl": lines(*rows)}, source, align={"bad_rows": "drop"})

    assert counts["train"]["examples"] + counts["validation"]["examples"] == len(rows) - 1


def test_a_record_of_another_width_than_its_header_is_refused_with_its_line(error_of):
    error = error_of({"d.csv": "instruction,output\na,b\na,b,c\n"})

    assert error == (DataError, f"d.csv:3: a CSV record with 3 fields, but the header has 2. {FIX_ROW}")


UNKNOWN_FORMATS = {
    "pairs of their own": ({"question": "a", "answer": "b"}, "columns: {instruction: question, output: answer}"),
    "an instruction with a context": (
        {"instruction": "a", "context": "b", "response": "c", "category": "d"},
        "columns: {input: context, output: response}",
    ),
    "nothing known": (
        {"foo": 1, "bar": "x"},
        "columns: {instruction: <the question's column>, output: <the answer's column>}",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN_FORMATS)
def test_rows_of_no_known_format_are_shown_how_to_name_their_columns(case, error_of):
    row, columns = UNKNOWN_FORMATS[case]

    _, message = error_of({"d.jsonl": lines(*[row] * 9)})

    assert message == (
        f"sources.d: the rows match no known format. The rows have the columns {sorted(row)}. "
        f"Map the columns, for example `{columns}`, or set format to one of standard, preference, kto, sharegpt, "
        f"openai, "
        "alpaca, text, or to module:function for a custom format."
    )


def test_a_misspelt_column_is_reported_by_the_format_detection(error_of):
    _, message = error_of({"d.jsonl": QUESTIONS}, {"columns": {"instruction": "questoin", "output": "answer"}})

    assert message == (
        "sources.d: the row has no column 'questoin'; it has ['answer', 'question']. Did you mean 'question'? Correct "
        "columns.instruction."
    )


# datasets as a whole


def test_a_dataset_of_empty_outputs_is_never_trained_on(error_of):
    rows = lines(*(alpaca(f"q{i}", "") for i in range(40)))

    _, message = error_of({"d.jsonl": rows}, align={"bad_rows": "drop", "max_bad_fraction": 1.0})

    assert message == (
        "sources.d: none of 40 rows can be used (empty assistant turn: 40). Check the format. First bad row: "
        "d.jsonl:1: "
        "turn 2 (assistant) is empty."
    )


def test_too_many_bad_rows_are_an_error_that_counts_them(error_of):
    rows = [*ALPACA[:3], *(alpaca(f"q{i}", "") for i in range(9))]

    _, message = error_of({"d.jsonl": lines(*rows)}, align={"bad_rows": "drop"})

    assert message == (
        "sources.d: 9 of 12 rows cannot be used, more than align.max_bad_fraction 0.5 allows (empty assistant turn: "
        "9). Fix "
        "the rows, or raise max_bad_fraction. First bad row: d.jsonl:4: turn 2 (assistant) is empty."
    )
