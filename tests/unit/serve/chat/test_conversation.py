"""Conversations: turns, undo, tool results, and rows that the data worker reads back."""

import json

import pytest

from tests import tiny
from tuneline.config.sections.sources import AlignConfig, IngestConfig, SourceConfig
from tuneline.errors import DataError, RecipeError
from tuneline.serve.chat import conversation
from tuneline.serve.chat.conversation import Conversation
from tuneline.serve.chat.interface import Answer, ChatToolCall

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture
def chat():
    chat = Conversation(system="Be brief.")
    chat.add_user("Hello")
    chat.add_answer(Answer(content="Hi."))
    return chat


def roles(chat):
    return [message["role"] for message in chat.messages()]


def aligned(path):
    from tuneline.data.align import align
    from tuneline.data.ingest import ingest

    manifest = ingest.locate_sources([SourceConfig(name="saved", path=path)])
    records = ingest.ingest(manifest, IngestConfig(name="saved"))
    corpus = align.align(records, AlignConfig())
    return corpus.only().to_list(), corpus.counts


def test_undo_removes_the_last_prompt_and_everything_after_it(chat):
    chat.add_user("More")
    chat.add_answer(Answer(tool_calls=[ChatToolCall("get_weather", "{}")]))
    chat.add_result(chat.open_calls()[0], "sunny")

    assert chat.undo()
    assert roles(chat) == ["system", "user", "assistant"]
    assert chat.undo()
    assert not chat.undo()
    assert roles(chat) == ["system"]


def test_a_prompt_replaces_one_that_was_not_answered(chat):
    chat.add_user("First")
    chat.add_answer(Answer())
    chat.add_user("Second")

    assert [message["content"] for message in chat.messages()] == ["Be brief.", "Hello", "Hi.", "Second"]


def test_every_call_of_the_last_answer_needs_a_result(chat):
    chat.add_user("Weather?")
    chat.add_answer(Answer(tool_calls=[ChatToolCall("get_weather", '{"c": 1}'), ChatToolCall("get_weather", "")]))

    first, second = chat.open_calls()
    chat.add_result(first, "sunny")
    assert chat.open_calls() == [second]
    chat.add_result(second, "rain")
    assert chat.open_calls() == []
    assert second["function"]["arguments"] == "{}"
    assert first["id"] != second["id"]


def test_the_saved_file_is_read_back_by_the_data_worker(chat, tmp_path, home):
    chat.tools = [WEATHER]
    chat.add_user("Weather?")
    chat.add_answer(Answer(tool_calls=[ChatToolCall("get_weather", '{"city": "Paris"}')]))
    chat.add_result(chat.open_calls()[0], "sunny")
    chat.add_answer(Answer(content="It is sunny.", reasoning="The tool says so.\n"))
    path = tmp_path / "new" / "chats.jsonl"

    assert chat.save(path) == 1
    chat.reset()
    chat.add_user("Other ✓\u2028")
    chat.add_answer(Answer(content="Yes."))
    assert chat.save(path) == 2

    rows, counts = aligned(path)
    assert (counts["format"], counts["dropped"], counts["unread_keys"]) == ("openai", {}, {})
    first, second = ([(m["role"], m["content"]) for m in row["messages"]] for row in rows)
    assert first == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "sunny"),
        ("assistant", "<think>\nThe tool says so.\n</think>\n\nIt is sunny."),
    ]
    assert second[1:] == [("user", "Other ✓\u2028"), ("assistant", "Yes.")]
    assert json.loads(rows[0]["messages"][4]["tool_calls"])[0]["function"]["arguments"] == {"city": "Paris"}
    assert json.loads(rows[0]["tools"]) == [WEATHER]


def test_a_stopped_answer_is_saved_without_loss(chat, tmp_path, home):
    chat.add_user("Count")
    chat.add_answer(Answer(content="1, 2", stopped=True))
    chat.add_user("Go on")
    chat.add_answer(Answer(content="3."))
    path = tmp_path / "chats.jsonl"
    chat.save(path)

    (row,), _ = aligned(path)
    assert [message["train"] for message in row["messages"]] == [None, None, None, None, False, None, None]


def test_what_follows_the_last_complete_answer_is_not_saved(chat):
    chat.add_user("Count")
    chat.add_answer(Answer(content="1, 2", stopped=True))

    assert [message["content"] for message in chat.row()["messages"]] == ["Be brief.", "Hello", "Hi."]


def test_saving_a_conversation_again_replaces_its_row(chat, tmp_path):
    path = tiny.write_jsonl(tmp_path / "chats.jsonl", [{"messages": []}])
    assert chat.save(path) == 2
    chat.add_user("More")
    chat.add_answer(Answer(content="Yes."))

    assert chat.save(path) == 2
    assert [len(json.loads(line)["messages"]) for line in path.read_text().splitlines()] == [0, 5]


def test_a_conversation_without_an_answer_is_not_saved(tmp_path):
    chat = Conversation()
    chat.add_user("Hello")

    with pytest.raises(DataError, match="no complete answer"):
        chat.save(tmp_path / "chats.jsonl")
    assert not (tmp_path / "chats.jsonl").exists()


def test_a_folder_is_not_overwritten(chat, tmp_path):
    with pytest.raises(RecipeError, match="expected a file"):
        chat.save(tmp_path)


def test_the_history_shows_calls_and_stopped_answers(chat):
    chat.tools = [WEATHER]
    chat.add_user("Weather?")
    chat.add_answer(Answer(content="Let me see.", tool_calls=[ChatToolCall("get_weather", '{"city": "Paris"}')]))
    chat.add_user("Stop")
    chat.add_answer(Answer(content="Well", stopped=True))

    assert chat.history().splitlines() == [
        "system: Be brief.",
        "tools: get_weather",
        "user: Hello",
        "assistant: Hi.",
        "user: Weather?",
        "assistant: Let me see.",
        'get_weather(city="Paris")',
        "user: Stop",
        "assistant: Well [stopped]",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "function"), ("[]", "no function"), ("{torn", "not valid JSON"), ("[1]", "with a name")],
)
def test_files_without_tools_are_refused(tmp_path, text, message):
    path = tmp_path / "tools.json"
    path.write_text(text)

    with pytest.raises(RecipeError, match=f"tools: .*{message}"):
        conversation.read_tools(path)


def test_a_bare_function_is_a_tool(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(WEATHER["function"]))

    assert conversation.read_tools(path) == [WEATHER]
    with pytest.raises(RecipeError, match="tools: .*missing"):
        conversation.read_tools(tmp_path / "missing.json")
