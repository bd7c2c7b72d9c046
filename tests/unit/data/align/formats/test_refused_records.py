"""Records that a format refuses: each error has a message and a reason."""

import pytest

from tests.chat_turns import align_turns, assistant, gpt, human, user
from tuneline.data.align import align
from tuneline.errors import DataError

# what no format takes


@pytest.mark.parametrize(
    ("format", "record", "message", "reason"),
    [
        ("alpaca", {"instruction": "a"}, r"needs 'output'; it has \['instruction'\]", "no 'output'"),
        ("alpaca", {"instruction": "a", "output": None}, "needs 'output', but it is null", "'output' is null"),
        ("alpaca", {"instruction": None, "output": "b"}, "'instruction', but it is null", "'instruction' is null"),
        ("kto", {"messages": [], "label": None}, "needs 'label', but it is null", "'label' is null"),
        ("kto", {"messages": [], "kto_tag": None}, "needs 'kto_tag', but it is null", "'kto_tag' is null"),
        ("kto", {"prompt": None, "label": True}, "needs 'prompt', but it is null", "'prompt' is null"),
        ("kto", {"prompt": "a", "output": None, "label": True}, "'output', but it is null", "'output' is null"),
        ("sharegpt", {"messages": None}, "needs 'messages', but it is null", "'messages' is null"),
        ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt', but it is", "'prompt' is null"),
        ("preference", {"prompt": "a", "chosen": "a", "rejected": None}, "'rejected', but", "'rejected' is null"),
        ("standard", {"_prompt": None, "_response": []}, "'_prompt', but it is null", "'_prompt' is null"),
        ("text", {"text": None}, "needs 'text', but it is null", "'text' is null"),
        ("openai", {"messages": [{"role": None, "content": "x"}]}, "'role', but it is", "turn whose 'role' is null"),
        (
            "alpaca",
            {"instruction": " ", "input": "a", "output": "b"},
            r"'instruction' is empty but 'input' is 'a'.*columns: \{instruction: input\}",
            "empty 'instruction' with an 'input'",
        ),
        ("alpaca", {"instruction": "a", "output": 3}, "'output' must be text, got int 3", "'output' is not text"),
        ("alpaca", {"instruction": "a", "output": {"b": 1}}, "'output' must be text, got dict", "'output' is not text"),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [["only one"]]},
            "'history' must be a list",
            "history is not a list of pairs",
        ),
        ("openai", {"messages": []}, "'messages' must be a list of mess", "'messages' is not a list of messages"),
        ("openai", {"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'", "unknown role"),
        ("openai", {"messages": [{"role": 3, "content": "x"}]}, "unknown role 3", "unknown role"),
        ("openai", {"messages": [{"content": "x"}]}, "a turn needs 'role'", "turn without role"),
        ("openai", {"messages": [user("a"), {"role": "assistant"}]}, "needs 'content'; it", "turn without content"),
        (
            "openai",
            {"messages": [user("a"), assistant(None)]},
            "a turn needs 'content', but it is null",
            "turn whose 'content' is null",
        ),
        ("openai", {"messages": [user(3), assistant("a")]}, "'content' must be text, got int", "'content' is not text"),
        (
            "openai",
            {"messages": [user([{"type": "image_url", "image_url": {}}]), assistant("a")]},
            "Tuneline reads text only",
            "content is not text",
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
            "thinking outside of the content",
        ),
        ("sharegpt", {"conversation": "hello"}, "must be a list of mess", "'conversation' is not a list of messages"),
        ("sharegpt", {"dialog": []}, "needs 'conversations'; it has", "no 'conversations'"),
        ("sharegpt", {"conversations": [human("a"), gpt(None)]}, "'value', but it is", "turn whose 'value' is null"),
        (
            "sharegpt",
            {"conversations": [human("a"), {"from": "function_call", "value": "add(1)"}]},
            "a tool call is not valid JSON",
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
            "arguments of a tool call must be an object",
            "arguments of a tool call are not an object",
        ),
        ("sharegpt", {"conversations": [human("a"), gpt("b")], "tools": "add"}, "not valid JSON", "tool is not JSON"),
        ("sharegpt", {"conversations": [human("a"), gpt("b")], "tools": [{}]}, "with a name", "tool without a name"),
        ("text", {"text": " \n"}, "the text is empty", "empty text"),
        ("text", {"text": ["a"]}, "'text' must be text, got list", "'text' is not text"),
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
def test_an_unreadable_row_is_refused_with_its_reason(format, record, message, reason):
    with pytest.raises(DataError, match=message) as caught:
        align.align_record(record, format)

    assert caught.value.reason == reason


def test_empty_image_columns_and_placeholders_do_not_count_as_images():
    record = {"instruction": "<image>", "output": "b", "images": [], "videos": None, "audios": [""]}

    assert align_turns(record, "alpaca") == [("user", "<image>"), ("assistant", "b")]
