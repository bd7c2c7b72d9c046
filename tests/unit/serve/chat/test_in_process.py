"""The client of a model in this process, with a scripted engine."""

import asyncio

import pytest

from tests.scripted_engine import ScriptedEngine
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.serve.answers.parts import Delta, ToolCall
from tuneline.serve.chat.in_process import InProcessClient
from tuneline.serve.chat.interface import Answer, ChatError, ChatRequest
from tuneline.serve.chat.opening import FixedDeployment
from tuneline.serve.chat.session import receive
from tuneline.serve.deploy.interface import RequestDefaults, ServedVersion

MESSAGES = [{"role": "user", "content": "Hello"}]


class PieceParser:
    """Decodes one token at a time; the stop string `!` ends the answer."""

    def __init__(self, tokenizer, has_tools):
        self.tokenizer, self.has_tools = tokenizer, has_tools

    def feed(self, token):
        text = self.tokenizer.decode([token.id], skip_special_tokens=True)
        if text == "!":
            return Delta(finish="stop")
        if token.finish and self.has_tools:
            return Delta(tool_calls=(ToolCall("add", "{}"),), finish="tool_calls")
        return Delta(text, finish=token.finish) if text or token.finish else None


@pytest.fixture
def open_client(tiny_model):
    """Build a client whose engine answers with a text."""
    tokenizer = load_tokenizer_from(tiny_model)

    def build(text="It is three.", defaults=None, **options):
        engine = ScriptedEngine(tokenizer(text)["input_ids"], **options)
        version = ServedVersion(
            "tiny/3", tiny_model, tokenizer, engine, "fp", stop_ids=(2,), defaults=defaults or RequestDefaults()
        )

        def encode(version, messages, tools, arguments):
            encode.seen = (messages, tools, arguments)
            return version.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

        client = InProcessClient(
            FixedDeployment(version),
            "",
            version.name,
            encode,
            lambda version, ids, stop, tools: PieceParser(tokenizer, bool(tools)),
        )
        return client, engine, encode

    return build


def ask(client, request):
    answer = Answer()
    asyncio.run(receive(client, request, answer, lambda delta: None))
    return answer


def test_the_answer_has_text_tokens_version_and_end(open_client):
    client, engine, _ = open_client()
    answer = ask(client, ChatRequest(MESSAGES, options={"temperature": 0, "max_tokens": 50}))

    assert (answer.content, answer.version, answer.finish) == ("It is three.", "tiny/3", "stop")
    assert answer.num_tokens == len(engine.ids) + 1
    assert engine.open_answers == 0


def test_parameters_reach_engine_and_template(open_client):
    client, engine, encode = open_client()
    tools = [{"type": "function", "function": {"name": "add"}}]
    options = {"temperature": 0.5, "top_k": 3, "seed": 9, "max_tokens": 7, "template.enable_thinking": False}
    answer = ask(client, ChatRequest(MESSAGES, tools, options))

    (request,) = engine.requests
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.5, 3, 9)
    assert (request.max_tokens, request.stop_ids) == (7, (2,))
    assert encode.seen == (MESSAGES, tools, {"enable_thinking": False})
    assert (answer.finish, answer.tool_calls[0].name) == ("tool_calls", "add")


def test_the_answer_ends_at_a_stop_string_and_frees_its_slot(open_client):
    client, engine, _ = open_client("It is! Not this.")
    answer = ask(client, ChatRequest(MESSAGES))

    assert (answer.content, answer.finish) == ("It is", "stop")
    assert engine.open_answers == 0


def test_a_cancelled_answer_frees_its_slot_at_once(open_client):
    client, engine, _ = open_client("word " * 200, delay=0.005)

    async def run():
        answer = Answer()
        task = asyncio.create_task(receive(client, ChatRequest(MESSAGES), answer, lambda delta: None))
        while not answer.content:
            await asyncio.sleep(0.005)
        assert engine.open_answers == 1
        task.cancel()
        await task
        return answer

    answer = asyncio.run(run())
    assert answer.stopped
    assert engine.open_answers == 0


def test_a_conversation_that_fills_the_context_is_refused(open_client):
    client, engine, _ = open_client(max_length=10)

    with pytest.raises(ChatError, match=r"has \d+ tokens, and the model holds 10 .* /undo or /reset"):
        ask(client, ChatRequest(MESSAGES))
    assert engine.requests == []


def test_the_answer_is_limited_by_what_the_prompt_leaves(open_client):
    client, engine, _ = open_client(max_length=40)
    ask(client, ChatRequest(MESSAGES, options={"max_tokens": 1000}))

    (request,) = engine.requests
    assert request.max_tokens == 40 - len(request.prompt_ids)


def test_a_parameter_that_the_engine_cannot_honor_is_refused(open_client):
    client, _, _ = open_client(unsupported=frozenset(["min_p"]))

    with pytest.raises(ChatError, match="engine scripted does not support min_p"):
        ask(client, ChatRequest(MESSAGES, options={"min_p": 0.1}))


def test_the_settings_of_the_model_are_defaults(open_client):
    defaults = RequestDefaults({"temperature": 0.6, "top_k": 20}, 5, "Be brief.", {"enable_thinking": False})
    client, engine, encode = open_client(defaults=defaults)
    ask(client, ChatRequest(MESSAGES, options={"top_k": 3}))
    ask(client, ChatRequest([{"role": "system", "content": "Rhyme."}, *MESSAGES], options={"max_tokens": 4}))

    first, second = engine.requests
    assert (first.sampling.temperature, first.sampling.top_k, first.max_tokens) == (0.6, 3, 5)
    assert second.max_tokens == 4
    messages, _, arguments = encode.seen
    assert (messages[0]["content"], arguments) == ("Rhyme.", {"enable_thinking": False})
