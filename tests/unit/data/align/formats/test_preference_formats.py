"""Preference and KTO formats: pairs, labels and transcripts."""

import pytest

from tests.chat_turns import ADD_SCHEMA, PAIR, TOOLS_JSON, assistant, gpt, human, turns, user
from tuneline.data.align import align
from tuneline.errors import DataError

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


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_a_pair_is_equal_in_every_format(prompt, answers):
    assert align.align_record({**prompt, **answers}, "preference") == PAIR
    assert align.detect_format([{**prompt, **answers}]) == "preference"


def test_the_common_prompt_of_two_full_chats_is_detected():
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
        "tools": [ADD_SCHEMA],
        "chosen": "b",
        "rejected": "c",
    }

    content = align.align_record(record, "preference")

    assert turns(content["messages"]) == [("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "a")]
    assert content["tools"] == TOOLS_JSON


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty assistant turn"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' is not text"),
        ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
        (
            {"messages": [user("a"), assistant("x")], "chosen": "b", "rejected": "c"},
            "prompt ends with an assistant turn",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
            "chosen and rejected have no common prompt",
        ),
        (
            {"prompt": "x", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            "the prompt differs from the common prompt of chosen and rejected",
        ),
    ],
)
def test_an_unusable_pair_is_refused_with_its_reason(record, reason):
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
def test_a_label_that_is_neither_true_nor_false_is_refused(label):
    record = {"instruction": "a", "output": "b", "label": label}

    assert align.detect_format([record]) == "kto"
    with pytest.raises(DataError, match="'label' must be true or false, got"):
        align.align_record(record, "kto")


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Two\n\nlines\n\nAssistant:"


@pytest.mark.parametrize("beginning", ["\n\n", ""])
def test_transcripts_of_hh_rlhf_are_chats_that_share_their_prompt(beginning):
    before = beginning + TRANSCRIPT.lstrip()

    content = align.align_record({"chosen": f"{before} good", "rejected": f"{before} bad\n"}, "preference")

    assert turns(content["messages"]) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Two\n\nlines")]
    assert turns(content["chosen"] + content["rejected"]) == [("assistant", "good"), ("assistant", "bad")]


def test_a_transcript_as_the_prompt_ends_before_the_answer():
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
        ("\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "ends with a user turn|begin differently|empty"),
        ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b", r"turn 2 \(assistant\) is empty"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d", "begin differently"),
        (
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: d",
            "follows a turn of role",
        ),
        ("\n\nAssistant: c", "\n\nAssistant: d", "needs 'prompt'"),
        ("\n\nHuman: a\n\nAssistant: b", "plain", "begin differently"),
    ],
)
def test_a_malformed_transcript_is_refused(chosen, rejected, message):
    with pytest.raises(DataError, match=message):
        align.align_record({"chosen": chosen, "rejected": rejected}, "preference")
