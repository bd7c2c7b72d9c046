"""Alpaca, ShareGPT and OpenAI formats: converted to the same messages, without added content."""

import json

import pytest

from tests.chat_turns import ADD_SCHEMA, CALL, CALLS_JSON, TOOLS_JSON, align_turns, assistant, gpt, human, turns, user
from tuneline.config.sections.sources import FORMATS, Columns, Tags
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.align.formats import formats
from tuneline.errors import DataError, NotFoundError


def test_every_format_of_a_recipe_is_registered_and_detectable():
    assert set(formats) == set(FORMATS) == set(align.DETECTION_ORDER)


def test_an_unknown_format_suggests_the_nearest():
    with pytest.raises(NotFoundError, match="Did you mean 'alpaca'"):
        align.align_record({}, "alpacca")


# alpaca


def test_alpaca_joins_instruction_and_input_after_its_history():
    record = {"instruction": "Add", "input": "1+1", "output": "2", "history": [["Hi", "Hello"]], "system": "Be short."}

    assert align_turns(record, "alpaca") == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add\n1+1"),
        ("assistant", "2"),
    ]


def test_null_fields_count_as_absent():
    record = {"instruction": "a", "input": None, "output": "b", "history": None, "system": None, "chosen": None}

    assert align_turns(record, "alpaca") == [("user", "a"), ("assistant", "b")]


def test_an_alpaca_row_with_a_pair_is_a_preference():
    pair = align.align_record({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}, "alpaca")
    ranked = align.align_record({"instruction": "a", "input": "b", "output": ["c", "x", "d"]}, "alpaca")

    assert pair == ranked
    assert schema.kind(pair) == "preference"


def test_columns_are_renamed_to_those_of_the_format():
    record = {"question": "a", "answer": "b", "output": "another thing"}

    assert align_turns(record, "alpaca", column_names=Columns(instruction="question", output="answer")) == [
        ("user", "a"),
        ("assistant", "b"),
    ]
    with pytest.raises(
        DataError, match=r"no column 'questoin'; it has .* Did you mean 'question'\? Correct columns.ins"
    ):
        align_turns(record, "alpaca", column_names=Columns(instruction="questoin"))


def test_two_columns_can_be_swapped():
    record = {"instruction": "b", "output": "a"}

    assert align_turns(record, "alpaca", column_names=Columns(instruction="output", output="instruction"))[0] == (
        "user",
        "a",
    )


# sharegpt


@pytest.mark.parametrize("name", ["conversations", "messages", "conversation"])
@pytest.mark.parametrize("asks", ["human", "user", "prompter", "Human", "USER"])
@pytest.mark.parametrize("answers", ["gpt", "chatgpt", "assistant", "bot", "model", "bing", "bard", "GPT"])
def test_common_speaker_names_are_known(name, asks, answers):
    record = {name: [{"from": asks, "value": "a"}, {"from": answers, "value": "b"}], "system": "s"}
    chat = {name: [{"role": asks, "content": "a"}, {"role": answers, "content": "b"}], "system": "s"}

    assert (
        align_turns(record, "sharegpt")
        == [("system", "s"), ("user", "a"), ("assistant", "b")]
        == align_turns(chat, "sharegpt")
    )


def test_tags_define_other_speaker_names():
    record = {"conversations": [{"who": "Ann", "says": "a"}, {"who": "Bob", "says": "b"}]}

    tags = Tags(role="who", content="says", user="Ann", assistant="Bob")

    assert align_turns(record, "sharegpt", tags=tags) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("observed", ["observation", "tool", "function_response", "ipython", "tool_response"])
@pytest.mark.parametrize("called", ["function_call", "tool_call"])
@pytest.mark.parametrize("value", [json.dumps(CALL), json.dumps([CALL]), json.dumps({"function": CALL})])
def test_a_function_call_is_an_assistant_message_and_its_result_a_tool_message(called, observed, value):
    record = [human("1+2"), {"from": called, "value": value}, {"from": observed, "value": "3"}, gpt("It is 3.")]

    content = align.align_record({"conversations": record, "tools": json.dumps([ADD_SCHEMA])}, "sharegpt")

    assert turns(content["messages"]) == [("user", "1+2"), ("assistant", ""), ("tool", "3"), ("assistant", "It is 3.")]
    assert content["messages"][1]["tool_calls"] == CALLS_JSON
    assert content["tools"] == TOOLS_JSON


def test_text_and_the_call_after_it_are_one_message():
    record = [human("1+2"), gpt("Let me see."), {"from": "function_call", "value": json.dumps(CALL)}]

    _, answer = align.align_record({"conversations": record}, "sharegpt")["messages"]

    assert answer == schema.message("assistant", "Let me see.", CALLS_JSON)


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_an_empty_list_of_functions_is_an_empty_text(tools):
    record = {"conversations": [human("a"), gpt("b")], "tools": tools}

    assert align.align_record(record, "sharegpt")["tools"] == ""


@pytest.mark.parametrize(
    "tools",
    [[ADD_SCHEMA], {"type": "function", "function": ADD_SCHEMA}, json.dumps(ADD_SCHEMA), [json.dumps(ADD_SCHEMA)]],
)
def test_functions_are_normalized(tools):
    record = {"messages": [user("a"), assistant("b")]}

    assert align.align_record({**record, "tools": tools}, "openai")["tools"] == TOOLS_JSON
    assert align.align_record({**record, "functions": tools}, "openai")["tools"] == TOOLS_JSON


# openai


def test_openai_messages_keep_their_train_flag_in_either_spelling():
    chat = [user("a"), assistant("b", train=False), user("c"), assistant("d", weight=0), user("e"), assistant("f")]
    weighed = [*chat[:-1], assistant("f", weight=1)]

    flags = [turn["train"] for turn in align.align_record({"messages": weighed}, "openai")["messages"]]

    assert flags == [None, False, None, False, None, True]


@pytest.mark.parametrize("name", ["train", "training", "loss", "weight", "train_on_turn"])
@pytest.mark.parametrize(("value", "flag"), [(False, False), (0, False), (True, True), (1.0, True), (None, None)])
def test_a_loss_switch_is_read_under_every_name_of_the_field(name, value, flag):
    content = align.align_record({"conversations": [human("a"), {**gpt("b"), name: value}]}, "sharegpt")

    assert content["messages"][1]["train"] is flag


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"train": True, "loss": 0}, "'train': True and 'loss': 0, which contradict each other"),
        ({"weight": 1, "training": False, "loss": True}, "'loss': True and 'training'|contradict each other"),
        ({"loss": "false"}, "'loss' must be true or false, or 1 or 0, got 'false'"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
            "'train_detail', which trains on part",
        ),
    ],
)
def test_unsupported_loss_switches_are_refused(switches, message):
    with pytest.raises(DataError, match=message):
        align.align_record({"messages": [user("a"), assistant("b", **switches)]}, "openai")


def test_openai_calls_accept_arguments_as_text_or_object():
    as_text = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": json.dumps(CALL["arguments"])},
    }
    as_object = {"type": "function", "function": CALL}
    question, result = user("1+2"), {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "3"}

    for call in (as_text, as_object):
        chat = [question, {"role": "assistant", "content": None, "tool_calls": [call]}, result, assistant("3")]
        content = align.align_record({"messages": chat, "parallel_tool_calls": False}, "openai")
        assert content["messages"][1] == schema.message("assistant", "", CALLS_JSON)
        assert content["messages"][2] == schema.message("tool", "3")


def test_a_call_without_arguments_has_none():
    chat = [user("a"), assistant("", tool_calls=[{"function": {"name": "now", "arguments": ""}}])]

    calls = align.align_record({"messages": chat}, "openai")["messages"][1]["tool_calls"]

    assert json.loads(calls)[0]["function"] == {"name": "now", "arguments": {}}


def test_old_and_new_openai_field_names_are_supported():
    chat = [
        {"role": "developer", "content": "s"},
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        assistant(None, function_call={"name": "add", "arguments": "{}"}),
        {"role": "function", "name": "add", "content": "c"},
        assistant("d"),
    ]

    assert align_turns({"messages": chat}, "openai") == [
        ("system", "s"),
        ("user", "ab"),
        ("assistant", ""),
        ("tool", "c"),
        ("assistant", "d"),
    ]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("openai", {"messages": [user("a"), assistant("b")]}),
        ("sharegpt", {"conversations": [human("a"), gpt("b")]}),
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("standard", {"prompt": [user("a")], "response": [assistant("b")]}),
    ],
)
def test_no_format_adds_a_system_message(format, record):
    assert align_turns(record, format) == [("user", "a"), ("assistant", "b")]
