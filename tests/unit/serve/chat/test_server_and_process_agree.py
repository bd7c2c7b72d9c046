"""A chat with Tuneline's server, and a chat with the same model in this process, have the same answers."""

import asyncio

import httpx2
import pytest

from tests import tiny
from tuneline.config.sections.serve import ServeConfig
from tuneline.serve.api.app import create_app
from tuneline.serve.api.settings import ApiSettings
from tuneline.serve.chat import opening
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import Answer, ChatError, ChatRequest
from tuneline.serve.chat.session import receive

TURNS = [
    {"role": "user", "content": "What is one and two?"},
    {"role": "assistant", "content": "It is three."},
    {"role": "user", "content": "And four?"},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny.build_model(tmp_path_factory.mktemp("agree") / "tiny", seed=3)
    model = opening.load(ServeConfig(model=str(folder)))
    yield model
    model.version.engine.close()


def answer_of(client, request):
    async def run():
        answer = Answer()
        await receive(client, request, answer, lambda delta: None)
        return answer

    return asyncio.run(run())


def server_client(loaded):
    app = create_app(opening.FixedDeployment(loaded.version), ApiSettings())
    return HttpClient("http://127.0.0.1:8000", "tiny", transport=httpx2.ASGITransport(app))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "max_tokens": 12},
        {"temperature": 1.0, "seed": 5, "max_tokens": 12, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1},
        {"temperature": 1.0, "top_p": 0.9, "seed": 7, "max_tokens": 30, "stop": ["e", "a"], "presence_penalty": 0.5},
    ],
)
def test_the_answers_are_the_same(loaded, options):
    request = ChatRequest([{"role": "system", "content": "Be brief."}, *TURNS], options=options)

    here, there = answer_of(loaded.client(), request), answer_of(server_client(loaded), request)

    assert (here.content, here.finish, here.version) == (there.content, there.finish, there.version)
    assert here.num_tokens == there.num_tokens
    assert here.num_tokens > 0


def test_a_parameter_that_the_server_refuses_is_explained(loaded):
    request = ChatRequest(TURNS, options={"template.enable_thinking": False})

    with pytest.raises(ChatError, match="enable_thinking is not a variable"):
        answer_of(server_client(loaded), request)
