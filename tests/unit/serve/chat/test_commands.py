"""Commands and parameters of a chat."""

import asyncio

import pytest

from tuneline.errors import NotFoundError, RecipeError
from tuneline.serve.chat import commands, options
from tuneline.serve.chat.interface import Answer, ChatToolCall, format_tool_call
from tuneline.serve.chat.session import Session
from tuneline.serve.chat.terminal_text import printable


class FakeClient:
    """A client that only has a name."""

    def __init__(self, name):
        self.name, self.closed = name, False

    async def close(self):
        self.closed = True


@pytest.fixture
def session():
    async def open_client(name):
        if name == "missing":
            raise NotFoundError.among("model", name, ["tiny"])
        return FakeClient(name or "base")

    return Session(FakeClient("tiny/1"), open_client)


def run(line, session):
    return asyncio.run(commands.execute(line, session))


def test_every_command_is_in_the_help(session):
    text = run("/help", session).text

    assert all(f"/{name}" in text for name in commands.COMMANDS)
    assert {"help", "system", "params", "tools", "compare", "regenerate", "undo", "history", "save", "reset"} < set(
        commands.COMMANDS
    )


def test_parameters_are_set_shown_and_reset(session):
    assert run("/params", session).text == "Parameters: temperature=0.7 top_p=0.9"
    assert run("/params temperature= top_p=", session).text == "Parameters: those of the model or the server"
    shown = run("/params temperature=0 seed=7 stop='a b' template.enable_thinking=false", session).text

    assert shown == 'Parameters: temperature=0 seed=7 stop=["a b"] template.enable_thinking=false'
    assert session.options["template.enable_thinking"] is False
    assert session.request().options == session.options
    assert run("/params temperature= stop= seed=", session).text == "Parameters: template.enable_thinking=false"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("temperature=-1", "temperature: expected a number from 0 to 100, found '-1'"),
        ("temperature=true", "temperature: expected a number"),
        ("temperature=nan", "temperature: expected a number"),
        ("top_k=1.5", "top_k: expected an integer"),
        ("max_tokens=0", "max_tokens: expected an integer from 1"),
        ("seed", "seed: expected seed=VALUE"),
        ("stop=[1]", "stop: expected a text or a JSON list"),
        ("temprature=1", "Unknown parameter 'temprature'. Did you mean 'temperature'?"),
    ],
)
def test_wrong_parameters_are_refused(session, assignment, message):
    before = dict(session.options)

    with pytest.raises((RecipeError, NotFoundError), match=message.replace("?", r"\?")):
        run(f"/params {assignment}", session)
    assert session.options == before


def test_the_system_message_is_set_shown_and_removed(session):
    run("/system Be brief.", session)
    assert session.request().messages == [{"role": "system", "content": "Be brief."}]
    assert run("/system", session).text == "System message: Be brief."
    run("/system off", session)
    assert session.request().messages == []


def test_comparison_opens_and_closes_the_second_model(session):
    assert "tiny/1 with base" in run("/compare", session).text
    first = session.other
    with pytest.raises(NotFoundError):
        run("/compare missing", session)
    assert session.other is first
    run("/compare other", session)
    assert (first.closed, session.other.name) == (True, "other")
    second = session.other
    run("/compare off", session)
    assert (second.closed, session.other) == (True, None)


def test_regenerate_and_undo_work_on_the_conversation(session):
    assert run("/regenerate", session).action == ""
    session.conversation.add_user("Hello")
    session.conversation.add_answer(Answer(content="Hi."))

    assert run("/regenerate", session).action == "answer"
    assert session.request().messages == [{"role": "user", "content": "Hello"}]
    run("/undo", session)
    assert session.request().messages == []


def test_reset_keeps_the_system_message(session):
    run("/system Be brief.", session)
    session.conversation.add_user("Hello")
    run("/reset", session)

    assert [message["role"] for message in session.request().messages] == ["system"]


def test_unknown_commands_suggest_the_nearest(session):
    with pytest.raises(NotFoundError, match="Unknown command '/param'. Did you mean '/params'"):
        run("/param temperature=1", session)
    with pytest.raises(RecipeError, match="cannot be split"):
        run("/params stop='a", session)
    with pytest.raises(RecipeError, match="/save needs a file"):
        run("/save", session)
    assert run("/exit", session).action == "exit"


def test_two_slashes_begin_a_prompt():
    assert commands.is_command("/help")
    assert not commands.is_command("//etc/hosts")
    assert commands.as_prompt("//etc/hosts") == "/etc/hosts"


def test_sampling_has_the_parameters_that_are_set():
    sampling = options.sampling({"temperature": 0, "top_k": 4, "max_tokens": 9, "stop": ["x"]})

    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0, 4, 1.0, None)


def test_tool_calls_are_shown_as_calls():
    assert format_tool_call(ChatToolCall("f", '{"a": "é", "b": [1]}')) == 'f(a="é", b=[1])'
    assert format_tool_call(ChatToolCall("f", "")) == "f()"
    assert format_tool_call(ChatToolCall("f", "{torn")) == "f({torn)"


def test_control_characters_of_an_answer_cannot_reach_the_terminal():
    text = printable("a\x1b]0;title\x07b\r\nc\td\u202ee\x9b2J\ud800")

    assert text == "a␛]0;title␇b\nc\td\\u202ee\\u009b2J\ufffd"
