"""The HTTP client against a server with OpenAI's API."""

import asyncio

import pytest

from tests import openai_server
from tuneline.errors import RecipeError
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import Answer, ChatError, ChatRequest
from tuneline.serve.chat.session import receive

REQUEST = ChatRequest([{"role": "user", "content": "Hello there"}], options={"temperature": 0, "max_tokens": 9})


def ask(url, request=REQUEST, **options):
    async def run():
        client = HttpClient(url, **options)
        try:
            await client.select_model()
            answer = Answer()
            await receive(client, request, answer, lambda delta: None)
            return answer
        finally:
            await client.close()

    return asyncio.run(run())


def test_an_answer_arrives_with_version_tokens_and_end():
    with openai_server.serve(openai_server.echo) as server:
        answer = ask(server.url)

    assert (answer.content, answer.version) == ("You said: Hellothere", "tiny/1")
    assert (answer.num_tokens, answer.finish) == (3, "stop")
    assert 0 < answer.first_seconds <= answer.seconds
    (body,) = server.requests
    assert body["model"] == "tiny/1"
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 9, True)
    assert "tools" not in body


def test_template_variables_are_sent_as_template_arguments():
    request = ChatRequest(REQUEST.messages, options={"template.enable_thinking": False, "stop": ["x"]})
    with openai_server.serve(openai_server.echo) as server:
        ask(server.url, request)

    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.requests[0]["stop"] == ["x"]
    assert "template.enable_thinking" not in server.requests[0]


def test_thoughts_and_tool_calls_in_pieces_are_assembled():
    calls = [
        {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x": '}},
        {"index": 1, "id": "b", "function": {"name": "now"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    script = {"reasoning": ["Let me ", "see."], "tool_calls": calls, "finish": "tool_calls"}
    with openai_server.serve(lambda body: script) as server:
        answer = ask(server.url)

    assert (answer.reasoning, answer.content, answer.finish) == ("Let me see.", "", "tool_calls")
    assert [(call.id, call.name, call.arguments) for call in answer.tool_calls] == [
        ("a", "add", '{"x": 1}'),
        ("b", "now", ""),
    ]


def test_a_key_is_sent_and_a_wrong_one_is_explained():
    with openai_server.serve(openai_server.echo, key="secret") as server:
        assert ask(server.url, key="secret").content
        with pytest.raises(ChatError, match="status 401: The key is wrong. Give the key with --key") as refused:
            ask(server.url, key="other")

    assert refused.value.status == 401


def test_the_first_model_is_the_default_and_unknown_models_are_refused():
    with openai_server.serve(openai_server.echo, models=("a/1", "b/2")) as server:
        ask(server.url)
        with pytest.raises(ChatError, match="does not serve c/3. Give one of its models: a/1, b/2"):
            ask(server.url, model="c/3")

    assert server.requests[0]["model"] == "a/1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"pieces": ["It"], "breaks": True}, "ended the answer before its end"),
        ({"pieces": ["It"], "error": "The engine died."}, "The server ended the answer: The engine died."),
        ({"status": 500, "body": "no JSON schema"}, "status 500: no JSON schema"),
        ({"status": 400, "body": {"detail": [{"msg": "bad"}]}}, "status 400: .*bad"),
    ],
)
def test_broken_answers_are_errors(script, message):
    with openai_server.serve(lambda body: script) as server, pytest.raises(ChatError, match=message):
        ask(server.url)


def test_a_full_server_says_when_to_try_again():
    full = {"status": 503, "body": {"error": {"message": "Busy."}}, "headers": {"Retry-After": "7"}}
    with openai_server.serve(lambda body: full) as server, pytest.raises(ChatError, match="again in 7 s") as refused:
        ask(server.url)

    assert refused.value.retry_after == 7


def test_servers_that_cannot_report_usage_are_asked_without_it():
    def script(body):
        if "stream_options" in body:
            return {"status": 422, "body": {"detail": "Unexpected fields: stream_options"}}
        return openai_server.echo(body)

    with openai_server.serve(script) as server:
        answer = ask(server.url)

    assert (answer.content, answer.num_tokens) == ("You said: Hellothere", 3)
    assert ["stream_options" in body for body in server.requests] == [True, False]


def test_a_server_that_is_not_running_is_explained():
    with pytest.raises(ChatError, match="http://127.0.0.1:9 does not answer .* Start the server with `tuneline serve"):
        ask("http://127.0.0.1:9/v1")


def test_an_address_needs_a_scheme():
    with pytest.raises(RecipeError, match="--url: expected an address .* found 'localhost:8000'"):
        HttpClient("localhost:8000")


def test_a_stopped_answer_ends_the_connection():
    async def run(url):
        client = HttpClient(url, "tiny/1")
        answer = Answer()
        task = asyncio.create_task(receive(client, REQUEST, answer, lambda delta: None))
        while not answer.content:
            await asyncio.sleep(0.01)
        task.cancel()
        await task
        await client.close()
        return answer

    with openai_server.serve(lambda body: {"pieces": ["word "] * 500, "delay": 0.01}) as server:
        answer = asyncio.run(run(server.url))
        assert wait_for(lambda: server.disconnects == 1)

    assert answer.stopped
    assert 0 < len(answer.content) < 1000


def wait_for(condition, seconds=5):
    import time

    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_text_is_continued():
    async def run(url):
        client = HttpClient(url, "tiny/1")
        try:
            return await client.complete("one two", {"max_tokens": 4})
        finally:
            await client.close()

    with openai_server.serve(lambda body: {"pieces": ["a", "b"], "finish": "length"}) as server:
        assert asyncio.run(run(server.url)) == ("ab", "length", 2, "tiny/1")

    assert server.requests == [{"model": "tiny/1", "prompt": "one two", "max_tokens": 4}]
