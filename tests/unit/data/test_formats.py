"""Formats: each reads its own shape of a row, says why where it cannot, and adds nothing of its own."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneline.config.sections.sources import FORMATS, Columns, Tags
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.align.formats import formats
from tuneline.errors import DataError, NotFoundError

CALL = {"name": "add", "arguments": {"b": 2, "a": 1}}
CALLED = '[{"type":"function","function":{"name":"add","arguments":{"b":2,"a":1}}}]'
ADD = {"name": "add", "parameters": {"type": "object"}}
TOOLS = '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'


def turns(messages):
    return [(message["role"], message["content"]) for message in messages]


def said(record, format, **more):
    return turns(align.align_record(record, format, **more)["messages"])


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def test_every_format_that_a_recipe_can_name_is_there_and_is_looked_for():
    assert set(formats) == set(FORMATS) == set(align.DETECTION_ORDER)


def test_an_unknown_format_suggests_the_nearest():
    with pytest.raises(NotFoundError, match="Did you mean 'alpaca'"):
        align.align_record({}, "alpacca")


# alpaca


def test_alpaca_joins_instruction_and_input_after_its_history():
    record = {"instruction": "Add", "input": "1+1", "output": "2", "history": [["Hi", "Hello"]], "system": "Be short."}

    assert said(record, "alpaca") == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add\n1+1"),
        ("assistant", "2"),
    ]


def test_fields_that_a_table_filled_with_null_count_as_absent():
    record = {"instruction": "a", "input": None, "output": "b", "history": None, "system": None, "chosen": None}

    assert said(record, "alpaca") == [("user", "a"), ("assistant", "b")]


def test_an_alpaca_row_with_a_pair_is_a_preference():
    pair = align.align_record({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}, "alpaca")
    ranked = align.align_record({"instruction": "a", "input": "b", "output": ["c", "x", "d"]}, "alpaca")

    assert pair == ranked
    assert schema.kind(pair) == "preference"


def test_columns_of_a_data_set_take_the_names_of_the_format():
    record = {"question": "a", "answer": "b", "output": "another thing"}

    assert said(record, "alpaca", own=Columns(instruction="question", output="answer")) == [
        ("user", "a"),
        ("assistant", "b"),
    ]
    with pytest.raises(
        DataError, match=r"no column 'questoin'; it has .* Did you mean 'question'\? Correct columns.ins"
    ):
        said(record, "alpaca", own=Columns(instruction="questoin"))


def test_two_columns_can_change_places():
    record = {"instruction": "b", "output": "a"}

    assert said(record, "alpaca", own=Columns(instruction="output", output="instruction"))[0] == ("user", "a")


# sharegpt


@pytest.mark.parametrize("name", ["conversations", "messages", "conversation"])
@pytest.mark.parametrize("asks", ["human", "user", "prompter", "Human", "USER"])
@pytest.mark.parametrize("answers", ["gpt", "chatgpt", "assistant", "bot", "model", "bing", "bard", "GPT"])
def test_speakers_are_known_in_every_common_spelling(name, asks, answers):
    spoken = {name: [{"from": asks, "value": "a"}, {"from": answers, "value": "b"}], "system": "s"}
    chat = {name: [{"role": asks, "content": "a"}, {"role": answers, "content": "b"}], "system": "s"}

    assert said(spoken, "sharegpt") == [("system", "s"), ("user", "a"), ("assistant", "b")] == said(chat, "sharegpt")


def test_tags_name_what_no_common_spelling_does():
    record = {"conversations": [{"who": "Ann", "says": "a"}, {"who": "Bob", "says": "b"}]}

    tags = Tags(role="who", content="says", user="Ann", assistant="Bob")

    assert said(record, "sharegpt", tags=tags) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("observed", ["observation", "tool", "function_response", "ipython", "tool_response"])
@pytest.mark.parametrize("called", ["function_call", "tool_call"])
@pytest.mark.parametrize("value", [json.dumps(CALL), json.dumps([CALL]), json.dumps({"function": CALL})])
def test_a_function_call_is_an_assistants_message_and_its_result_a_tools(called, observed, value):
    spoken = [human("1+2"), {"from": called, "value": value}, {"from": observed, "value": "3"}, gpt("It is 3.")]

    content = align.align_record({"conversations": spoken, "tools": json.dumps([ADD])}, "sharegpt")

    assert turns(content["messages"]) == [("user", "1+2"), ("assistant", ""), ("tool", "3"), ("assistant", "It is 3.")]
    assert content["messages"][1]["tool_calls"] == CALLED
    assert content["tools"] == TOOLS


def test_text_and_the_call_after_it_are_one_message():
    spoken = [human("1+2"), gpt("Let me see."), {"from": "function_call", "value": json.dumps(CALL)}]

    _, answer = align.align_record({"conversations": spoken}, "sharegpt")["messages"]

    assert answer == schema.message("assistant", "Let me see.", CALLED)


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_no_functions_are_an_empty_text(tools):
    record = {"conversations": [human("a"), gpt("b")], "tools": tools}

    assert align.align_record(record, "sharegpt")["tools"] == ""


@pytest.mark.parametrize("tools", [[ADD], {"type": "function", "function": ADD}, json.dumps(ADD), [json.dumps(ADD)]])
def test_functions_have_one_form_however_they_are_written(tools):
    record = {"messages": [user("a"), assistant("b")]}

    assert align.align_record({**record, "tools": tools}, "openai")["tools"] == TOOLS
    assert align.align_record({**record, "functions": tools}, "openai")["tools"] == TOOLS


# openai


def test_openai_messages_keep_their_train_flag_in_either_spelling():
    chat = [user("a"), assistant("b", train=False), user("c"), assistant("d", weight=0), user("e"), assistant("f")]
    weighed = [*chat[:-1], assistant("f", weight=1)]

    flags = [turn["train"] for turn in align.align_record({"messages": weighed}, "openai")["messages"]]

    assert flags == [None, False, None, False, None, True]


@pytest.mark.parametrize("name", ["train", "training", "loss", "weight", "train_on_turn"])
@pytest.mark.parametrize(("value", "flag"), [(False, False), (0, False), (True, True), (1.0, True), (None, None)])
def test_a_switch_is_read_under_every_name_of_the_field(name, value, flag):
    found = align.align_record({"conversations": [human("a"), {**gpt("b"), name: value}]}, "sharegpt")

    assert found["messages"][1]["train"] is flag


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"train": True, "loss": 0}, "'train': True and 'loss': 0, which contradict each other"),
        ({"weight": 1, "training": False, "loss": True}, "'loss': True and 'training'|contradict each other"),
        ({"loss": "false"}, "'loss' must be true or false, or 1 or 0, got 'false'"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "'train_detail', which trains part"),
    ],
)
def test_switches_that_cannot_be_followed_are_refused(switches, message):
    with pytest.raises(DataError, match=message):
        align.align_record({"messages": [user("a"), assistant("b", **switches)]}, "openai")


def test_openai_calls_are_read_whether_their_arguments_are_text_or_not():
    as_text = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": json.dumps(CALL["arguments"])},
    }
    as_object = {"type": "function", "function": CALL}
    asked, result = user("1+2"), {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "3"}

    for call in (as_text, as_object):
        chat = [asked, {"role": "assistant", "content": None, "tool_calls": [call]}, result, assistant("3")]
        content = align.align_record({"messages": chat, "parallel_tool_calls": False}, "openai")
        assert content["messages"][1] == schema.message("assistant", "", CALLED)
        assert content["messages"][2] == schema.message("tool", "3")


def test_a_call_without_arguments_has_none():
    chat = [user("a"), assistant("", tool_calls=[{"function": {"name": "now", "arguments": ""}}])]

    calls = align.align_record({"messages": chat}, "openai")["messages"][1]["tool_calls"]

    assert json.loads(calls)[0]["function"] == {"name": "now", "arguments": {}}


def test_openais_older_and_newer_words_are_understood():
    chat = [
        {"role": "developer", "content": "s"},
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        assistant(None, function_call={"name": "add", "arguments": "{}"}),
        {"role": "function", "name": "add", "content": "c"},
        assistant("d"),
    ]

    assert said({"messages": chat}, "openai") == [
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
def test_no_format_puts_a_system_message_where_the_data_have_none(format, record):
    assert said(record, format) == [("user", "a"), ("assistant", "b")]


# preference


PROMPTS = [
    {"instruction": "a"},
    {"prompt": "a"},
    {"prompt": [user("a")]},
    {"messages": [user("a")]},
    {"conversations": [human("a")]},
]
ANSWERS = [
    {"chosen": "b", "rejected": "c"},
    {"chosen": gpt("b"), "rejected": gpt("c")},
    {"chosen": assistant("b"), "rejected": assistant("c")},
    {"chosen": [assistant("b")], "rejected": [assistant("c")]},
    {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
    {"responses": ["b", "between", "c"]},
]
PAIR = schema.content(
    [schema.message("user", "a")],
    chosen=[schema.message("assistant", "b")],
    rejected=[schema.message("assistant", "c")],
)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_a_pair_is_the_same_in_every_form(prompt, answers):
    assert align.align_record({**prompt, **answers}, "preference") == PAIR
    assert align.detect_format([{**prompt, **answers}]) == "preference"


def test_a_prompt_is_found_where_both_answers_are_whole_chats():
    shared = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]

    content = align.align_record(
        {"chosen": [*shared, assistant("d")], "rejected": [*shared, assistant("e")]}, "preference"
    )

    assert turns(content["messages"]) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert (turns(content["chosen"]), turns(content["rejected"])) == ([("assistant", "d")], [("assistant", "e")])


def test_a_pair_keeps_the_system_message_history_and_functions_of_its_prompt():
    record = {
        "instruction": "a",
        "history": [["x", "y"]],
        "system": "s",
        "tools": [ADD],
        "chosen": "b",
        "rejected": "c",
    }

    content = align.align_record(record, "preference")

    assert turns(content["messages"]) == [("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "a")]
    assert content["tools"] == TOOLS


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty assistant turn"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' is no text"),
        ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
        ({"messages": [user("a"), assistant("x")], "chosen": "b", "rejected": "c"}, "prompt ends on an assistant turn"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
            "chosen and rejected have no common prompt",
        ),
        (
            {"prompt": "x", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            "the prompt is not what chosen and rejected share",
        ),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(record, reason):
    with pytest.raises(DataError) as caught:
        align.align_record(record, "preference")

    assert caught.value.reason == reason


# kto


@pytest.mark.parametrize("label", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("a"), assistant("b")]},
        {"conversations": [human("a"), gpt("b")]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [user("a")], "completion": [assistant("b")]},
        {"instruction": "a", "output": "b"},
    ],
)
def test_kto_is_a_chat_with_a_label(record, label):
    content = align.align_record({**record, label: False}, "kto")

    assert (turns(content["messages"]), content["label"]) == ([("user", "a"), ("assistant", "b")], False)
    assert align.detect_format([{**record, label: False}]) == "kto"


@pytest.mark.parametrize("label", [1, 0, "true", 1.0])
def test_a_label_that_is_neither_true_nor_false_is_refused_and_not_overlooked(label):
    record = {"instruction": "a", "output": "b", "label": label}

    assert align.detect_format([record]) == "kto"
    with pytest.raises(DataError, match="'label' must be true or false, got"):
        align.align_record(record, "kto")


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Two\n\nlines\n\nAssistant:"


@pytest.mark.parametrize("beginning", ["\n\n", ""])
def test_transcripts_of_hh_rlhf_are_chats_that_share_their_prompt(beginning):
    before = beginning + TRANSCRIPT.lstrip()

    found = align.align_record({"chosen": f"{before} good", "rejected": f"{before} bad\n"}, "preference")

    assert turns(found["messages"]) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Two\n\nlines")]
    assert turns(found["chosen"] + found["rejected"]) == [("assistant", "good"), ("assistant", "bad")]


def test_a_transcript_as_the_prompt_ends_where_the_answer_goes():
    pair = align.align_record({"prompt": TRANSCRIPT, "chosen": " good", "rejected": " bad"}, "preference")
    labelled = align.align_record({"prompt": TRANSCRIPT, "completion": " good", "label": True}, "kto")

    assert (
        pair["messages"]
        == labelled["messages"][:-1]
        == align.align_record({"chosen": f"{TRANSCRIPT} a", "rejected": f"{TRANSCRIPT} b"}, "preference")["messages"]
    )
    assert turns(pair["chosen"] + pair["rejected"]) == [("assistant", "good"), ("assistant", "bad")]
    assert turns(labelled["messages"][-1:]) == [("assistant", "good")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "ends on a user turn|begin differently|empty"),
        ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b", "turn 2, by the assistant, is empty"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d", "begin differently"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d", "follows one by"),
        ("\n\nAssistant: c", "\n\nAssistant: d", "needs 'prompt'"),
        ("\n\nHuman: a\n\nAssistant: b", "plain", "begin differently"),
    ],
)
def test_a_malformed_transcript_is_refused(chosen, rejected, message):
    with pytest.raises(DataError, match=message):
        align.align_record({"chosen": chosen, "rejected": rejected}, "preference")


# standard and text


@pytest.mark.parametrize("mark", ["", "_"])
def test_the_papers_form_is_read_with_and_without_underscores(mark):
    call = {"role": "function", "content": json.dumps(CALL)}
    record = {"prompt": [user("a")], "response": [call], "system": "s", "tools": json.dumps([ADD]), "images": [""]}

    content = align.align_record({f"{mark}{name}": value for name, value in record.items()}, "standard")

    assert turns(content["messages"]) == [("system", "s"), ("user", "a"), ("assistant", "")]
    assert (content["messages"][-1]["tool_calls"], content["tools"]) == (CALLED, TOOLS)


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
        schema.content([schema.message("user", "a"), schema.message("assistant", "", CALLED)], tools=TOOLS),
    ],
)
def test_an_example_of_our_own_comes_back_as_it_was(content):
    example = json.loads(json.dumps(schema.example("s", content)))

    assert align.detect_format([example]) == "standard"
    assert align.align_record(example, "standard") == content


def test_a_text_is_taken_as_it_is():
    assert align.align_record({"text": " x\n", "meta": 1}, "text") == schema.content(text=" x\n")


# what no format takes


@pytest.mark.parametrize(
    ("format", "record", "message", "reason"),
    [
        ("alpaca", {"instruction": "a"}, r"needs 'output'; it has \['instruction'\]", "no 'output'"),
        ("alpaca", {"instruction": "a", "output": None}, "needs 'output', and it is null", "'output' is null"),
        ("alpaca", {"instruction": None, "output": "b"}, "'instruction', and it is null", "'instruction' is null"),
        ("kto", {"messages": [], "label": None}, "needs 'label', and it is null", "'label' is null"),
        ("kto", {"messages": [], "kto_tag": None}, "needs 'kto_tag', and it is null", "'kto_tag' is null"),
        ("kto", {"prompt": None, "label": True}, "needs 'prompt', and it is null", "'prompt' is null"),
        ("kto", {"prompt": "a", "output": None, "label": True}, "'output', and it is null", "'output' is null"),
        ("sharegpt", {"messages": None}, "needs 'messages', and it is null", "'messages' is null"),
        ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt', and it is", "'prompt' is null"),
        ("preference", {"prompt": "a", "chosen": "a", "rejected": None}, "'rejected', and", "'rejected' is null"),
        ("standard", {"_prompt": None, "_response": []}, "'_prompt', and it is null", "'_prompt' is null"),
        ("text", {"text": None}, "needs 'text', and it is null", "'text' is null"),
        ("openai", {"messages": [{"role": None, "content": "x"}]}, "'role', and it is", "turn whose 'role' is null"),
        (
            "alpaca",
            {"instruction": " ", "input": "a", "output": "b"},
            r"'instruction' is empty, and 'input' is 'a'.*columns: \{instruction: input\}",
            "empty 'instruction' with an 'input'",
        ),
        ("alpaca", {"instruction": "a", "output": 3}, "'output' must be text, got int 3", "'output' is no text"),
        ("alpaca", {"instruction": "a", "output": {"b": 1}}, "'output' must be text, got dict", "'output' is no text"),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [["only one"]]},
            "'history' must be a list",
            "history is no list of pairs",
        ),
        ("openai", {"messages": []}, "'messages' must be a list of mess", "'messages' is no list of messages"),
        ("openai", {"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'", "unknown role"),
        ("openai", {"messages": [{"role": 3, "content": "x"}]}, "unknown role 3", "unknown role"),
        ("openai", {"messages": [{"content": "x"}]}, "a turn needs 'role'", "turn without role"),
        ("openai", {"messages": [user("a"), {"role": "assistant"}]}, "needs 'content'; it", "turn without content"),
        (
            "openai",
            {"messages": [user("a"), assistant(None)]},
            "a turn needs 'content', and it is null",
            "turn whose 'content' is null",
        ),
        ("openai", {"messages": [user(3), assistant("a")]}, "'content' must be text, got int", "'content' is no text"),
        (
            "openai",
            {"messages": [user([{"type": "image_url", "image_url": {}}]), assistant("a")]},
            "Tuneline reads text only",
            "content that is no text",
        ),
        (
            "openai",
            {"messages": [user("a"), assistant("b", weight=0.5)]},
            "'weight' must be true or false, or 1 or 0, got 0.5",
            "'weight' is neither true nor false",
        ),
        (
            "openai",
            {"messages": [user("a"), assistant("b", train="no")]},
            "'train' must be true or",
            "'train' is neither true nor false",
        ),
        (
            "openai",
            {"messages": [user("a"), assistant("b", reasoning_content="hm")]},
            "would be lost",
            "thoughts beside the content",
        ),
        ("sharegpt", {"conversation": "hello"}, "must be a list of mess", "'conversation' is no list of messages"),
        ("sharegpt", {"dialog": []}, "needs 'conversations'; it has", "no 'conversations'"),
        ("sharegpt", {"conversations": [human("a"), gpt(None)]}, "'value', and it is", "turn whose 'value' is null"),
        (
            "sharegpt",
            {"conversations": [human("a"), {"from": "function_call", "value": "add(1)"}]},
            "a tool call is not JSON",
            "tool call is not JSON",
        ),
        (
            "sharegpt",
            {"conversations": [human("a"), {"from": "function_call", "value": '{"arguments": {}}'}]},
            "must be an object with a name",
            "tool call without a name",
        ),
        (
            "openai",
            {"messages": [user("a"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])]},
            "arguments must be an object",
            "tool call's arguments are no object",
        ),
        ("sharegpt", {"conversations": [human("a"), gpt("b")], "tools": "add"}, "not JSON", "tool is not JSON"),
        ("sharegpt", {"conversations": [human("a"), gpt("b")], "tools": [{}]}, "with a name", "tool without a name"),
        ("text", {"text": " \n"}, "the text is empty", "empty text"),
        ("text", {"text": ["a"]}, "'text' must be text, got list", "'text' is no text"),
        ("text", {"txt": "a"}, "needs 'text'; it has", "no 'text'"),
        (
            "standard",
            {"prompt": [user("a")], "response": [assistant(x) for x in "abc"]},
            "one answer or a pair, got 3",
            "more than two responses",
        ),
        (
            "alpaca",
            {"instruction": "<image>", "output": "b", "images": ["cat.png"]},
            "column 'images' holds",
            "'images' is not text",
        ),
    ],
)
def test_a_row_that_a_format_cannot_read_says_why(format, record, message, reason):
    with pytest.raises(DataError, match=message) as caught:
        align.align_record(record, format)

    assert caught.value.reason == reason


def test_empty_image_columns_and_placeholders_are_no_images():
    record = {"instruction": "<image>", "output": "b", "images": [], "videos": None, "audios": [""]}

    assert said(record, "alpaca") == [("user", "<image>"), ("assistant", "b")]


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
    said = [("system", draw(WORDS), None)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        said.append(("user", draw(WORDS), None))
        if draw(st.booleans()):
            said.append(("assistant", draw(WORDS | st.just("")), draw(FUNCTION_CALLS)))
            said += [("tool", draw(WORDS), None)] * draw(st.integers(1, 2))
        said.append(("assistant", draw(WORDS), None))
    return said


def as_openai(chat, tools):
    def turn(role, content, calls):
        plain = {"role": role, "content": content or (None if calls else "")}
        if not calls:
            return plain
        packed = [{**call, "arguments": json.dumps(call["arguments"])} for call in calls]
        return {**plain, "tool_calls": [{"id": "x", "type": "function", "function": call} for call in packed]}

    schemas = [{"type": "function", "function": tool} for tool in tools]
    return {"messages": [turn(*said) for said in chat], "tools": schemas}


def as_sharegpt(chat, tools):
    words = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    spoken = []
    for role, content, calls in chat:
        if content or not calls:
            spoken.append({"from": words[role], "value": content})
        if calls:
            spoken.append({"from": "function_call", "value": json.dumps(calls)})
    return {"conversations": spoken, "tools": json.dumps(tools)}


@given(chat=chats(), tools=FUNCTION_TOOLS)
def test_a_chat_says_the_same_in_openais_words_and_in_sharegpts(chat, tools):
    one = align.align_record(as_openai(chat, tools), "openai")
    other = align.align_record(as_sharegpt(chat, tools), "sharegpt")

    assert one == other
    assert schema.content_id(one) == schema.content_id(other)
    assert turns(one["messages"]) == [(role, content) for role, content, _ in chat]
    calls = [json.loads(turn["tool_calls"]) if turn["tool_calls"] else None for turn in one["messages"]]
    assert [called and [call["function"] for call in called] for called in calls] == [calls for _, _, calls in chat]


@given(chat=chats(), tools=FUNCTION_TOOLS)
def test_an_example_that_was_written_and_read_again_has_its_old_id(chat, tools):
    content = align.align_record(as_openai(chat, tools), "openai")

    again = align.align_record(orjson.loads(orjson.dumps(schema.example("s", content))), "standard")

    assert schema.content_id(again) == schema.content_id(content)
