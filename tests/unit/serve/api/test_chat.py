"""Chat answers through the official client: whole, streamed, asynchronous, cancelled."""

import asyncio
import copy
import json
import time

import openai
import pytest

from tests import api_server
from tests.api_server import TEXT

MESSAGES = [{"role": "user", "content": "What is one and two?"}]
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('reasoning_content') %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(client, **fields):
    return client.chat.completions.create(model="demo@champion", messages=MESSAGES, **fields)


def wait_until_idle(engine):
    end = time.monotonic() + 5
    while engine.running and time.monotonic() < end:
        time.sleep(0.01)
    return engine.running == 0


def test_a_whole_answer(server, client):
    answer = chat(client)

    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "demo/7", "fp_1234")
    assert answer.usage.prompt_tokens == len(server.engine.requests[0].prompt_ids)
    assert answer.usage.completion_tokens == server.engine.generated
    assert choice.logprobs is None


def test_a_stream_has_the_same_text(server, client):
    chunks = list(chat(client, stream=True))

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {("demo/7", "fp_1234")}
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.usage for chunk in chunks} == {None}


def test_a_stream_ends_with_its_usage(server, client):
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})

    assert last.choices == []
    assert last.usage.completion_tokens == server.engine.generated
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert {chunk.usage for chunk in chunks} == {None}


def test_the_bytes_of_a_stream_are_server_sent_events(server, client):
    with client.chat.completions.with_streaming_response.create(model="", messages=MESSAGES, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_the_answers_of_one_stream_have_their_index(server, client):
    texts = {0: "", 1: "", 2: ""}
    for chunk in chat(client, stream=True, n=3):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == dict.fromkeys(range(3), TEXT)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_frees_the_engine(server, client, stream):
    if stream:
        chunks = [chunk.choices[0] for chunk in chat(client, stop=[" or", "x"], stream=True)]
        text, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
    else:
        choice = chat(client, stop=" or").choices[0]
        text, reason = choice.message.content, choice.finish_reason

    assert (text, reason) == ("It is three,", "stop")
    assert server.engine.generated < len(server.engine.script(server.engine.requests[0]))
    assert server.engine.running == 0


def test_log_probabilities_follow_the_text(server, client):
    logprobs = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs

    assert "".join(token.token for token in logprobs.content) == TEXT
    assert b"".join(bytes(token.bytes) for token in logprobs.content).decode() == TEXT
    assert {token.logprob for token in logprobs.content} == {-0.5}
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * len(logprobs.content)


def test_log_probabilities_of_a_stream_are_those_of_the_answer(server, client):
    whole = chat(client, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = list(chat(client, logprobs=True, top_logprobs=1, stream=True))

    assert [token for chunk in chunks for token in chunk.choices[0].logprobs.content] == whole


def test_requests_of_the_asynchronous_client_run_together(server):
    server.engine.delay = 0.02
    most = []

    async def one(client):
        text = ""
        async for chunk in await chat(client, stream=True):
            text += chunk.choices[0].delta.content or ""
            most.append(server.engine.running)
        return text

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(8)))

    assert asyncio.run(run()) == [TEXT] * 8
    assert max(most) == 8


def test_closing_a_stream_frees_its_slot(server, client):
    server.engine.text, server.engine.delay = TEXT * 40, 0.01
    with chat(client, stream=True) as stream:
        next(iter(stream))

    assert wait_until_idle(server.engine)
    assert server.engine.generated < 100


def test_cancelling_a_whole_answer_frees_its_slot(server):
    server.engine.text, server.engine.delay = TEXT * 40, 0.01

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.3).chat.completions.create(model="", messages=MESSAGES, n=2)

    asyncio.run(run())
    assert len(server.engine.requests) == 2
    assert wait_until_idle(server.engine)
    assert server.engine.generated < 200


def test_the_version_is_kept_until_the_end_of_a_stream(server, client):
    server.engine.delay = 0.01
    held = [server.deployment.held for _ in chat(client, stream=True)]

    assert held[0] == 1
    assert wait_until_idle(server.engine)
    assert server.deployment.acquired[-1] == "demo@champion"


def test_an_empty_model_is_the_default(server, client):
    assert client.chat.completions.create(model="", messages=MESSAGES).model == "demo/7"


def test_thoughts_and_tool_calls_have_their_own_fields(tokenizer):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = TOOL_TEMPLATE
    engine = api_server.ScriptedEngine(thinking, f"<think>\nIt is 1.\n</think>\n\nThree.\n{call}")
    with (
        api_server.serve(thinking, engine=engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        choice = chat(client, tools=[tool]).choices[0]
        deltas = [chunk.choices[0].delta for chunk in chat(client, tools=[tool], stream=True)]
        plain = chat(client, tools=[tool], tool_choice="none").choices[0]
        chat(client, tools=[tool], tool_choice="required")

    message = choice.message
    assert (message.content.strip(), message.reasoning_content.strip()) == ("Three.", "It is 1.")
    assert [(item.function.name, json.loads(item.function.arguments)) for item in message.tool_calls] == [
        ("add", {"a": 1})
    ]
    assert choice.finish_reason == "tool_calls"
    calls = [item for delta in deltas for item in delta.tool_calls or ()]
    assert [(item.index, item.type, item.function.name) for item in calls] == [(0, "function", "add")]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas).strip() == "It is 1."
    assert [request.grammar is None for request in engine.requests] == [True, True, True, False]
    assert len(engine.requests[2].prompt_ids) < len(engine.requests[0].prompt_ids)
    assert plain.message.tool_calls is None
    assert "<tool_call>" in plain.message.content
