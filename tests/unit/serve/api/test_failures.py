"""Failing engines, full queues and time limits: nothing hangs, and each failure has its answer."""

import json

import httpx2 as httpx
import openai
import pytest

from tests import api_server

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def limited(tokenizer):
    limits = {"max_request_seconds": 0.3, "max_waiting": 4, "max_prompt_tokens": 40, "max_tokens": 30}
    with api_server.serve(tokenizer, retry_after_seconds=3, **limits) as server:
        yield server


@pytest.fixture(autouse=True)
def reset(limited):
    limited.engine.__init__(limited.engine.tokenizer)


def events(response):
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}, {"stream": True, "n": 3}])
def test_an_engine_that_fails_at_once_is_unavailable(limited, fields):
    limited.engine.fail_after = 0
    response = httpx.post(limited.url + CHAT, json={**BODY, **fields})

    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    message = "The engine died. Send the request again."
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_failed"}
    assert response.json() == {"error": error}
    assert limited.engine.running == 0


def test_a_whole_answer_that_fails_is_unavailable(limited):
    limited.engine.fail_after = 3
    response = httpx.post(limited.url + CHAT, json=BODY)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_that_fails_ends_with_an_error_event(limited, n):
    limited.engine.fail_after = 3
    response = httpx.post(limited.url + CHAT, json={**BODY, "stream": True, "n": n})

    *chunks, last = events(response)
    assert response.status_code == 200
    assert len(chunks) >= 3
    assert json.loads(last)["error"]["code"] == "engine_failed"
    assert limited.engine.running == 0


def test_the_client_library_raises_the_error_of_a_stream(limited):
    limited.engine.fail_after = 2
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key="none", max_retries=0)

    with pytest.raises(openai.APIError, match="The engine died"):
        list(client.chat.completions.create(model="", **BODY, stream=True))


def test_an_answer_without_last_token_is_a_failure(limited, monkeypatch):
    async def generate(request):
        yield api_server.Token(40)

    monkeypatch.setattr(limited.engine, "generate", generate)
    error = httpx.post(limited.url + CHAT, json=BODY).json()["error"]

    assert error["message"].startswith("The engine scripted ended an answer without its last token.")


def test_a_defect_is_an_internal_error_without_details(limited, caplog):
    limited.engine.fail_after, limited.engine.error = 1, KeyError("a secret of the server")
    response = httpx.post(limited.url + CHAT, json=BODY)

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "a secret of the server" in caplog.text


def test_a_long_answer_is_a_timeout(limited):
    limited.engine.delay = 0.2
    response = httpx.post(limited.url + CHAT, json=BODY)

    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert limited.engine.running == 0


def test_a_long_stream_ends_with_a_timeout(limited):
    limited.engine.delay = 0.1
    *chunks, last = events(httpx.post(limited.url + CHAT, json={**BODY, "stream": True}))

    assert 1 <= len(chunks) <= 3
    assert json.loads(last)["error"]["code"] == "timeout"
    assert limited.engine.running == 0


@pytest.mark.parametrize(("waiting", "status"), [(4, 200), (5, 503)])
def test_a_full_queue_refuses_requests(limited, waiting, status):
    limited.engine.waiting = waiting
    response = httpx.post(limited.url + CHAT, json=BODY)

    assert response.status_code == status
    if status == 503:
        assert response.headers["retry-after"] == "3"
        assert response.json()["error"]["code"] == "queue_full"


def test_a_long_prompt_is_refused(limited):
    body = {"messages": [{"role": "user", "content": "One and two. " * 20}]}
    error = httpx.post(limited.url + CHAT, json=body).json()["error"]

    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert error["message"].endswith("tokens; this server accepts 40. Shorten it.")


def test_a_long_answer_is_refused_or_limited(limited):
    error = httpx.post(limited.url + CHAT, json={**BODY, "max_tokens": 31}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "invalid_value")

    httpx.post(limited.url + CHAT, json=BODY)
    assert limited.engine.requests[-1].max_tokens == 30


def test_a_model_that_is_not_loaded_is_not_healthy(limited):
    limited.deployment.ready = False
    response = httpx.get(f"{limited.url}/health")
    limited.deployment.ready = True

    assert (response.status_code, response.json()) == (503, {"status": "not ready"})
    assert response.headers["retry-after"] == "3"
