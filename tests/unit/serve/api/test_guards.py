"""Keys, rates, Host, Origin and body sizes."""

import time

import httpx2 as httpx
import openai
import pytest

from tests import api_server
from tuneline.serve.api.errors import ApiError
from tuneline.serve.api.guards import KeyGuard, KeyUse
from tuneline.serve.api.settings import ApiKey, ApiSettings

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
KEYS = (
    ApiKey("alice", "secret-a"),
    ApiKey("bob", "secret-b", requests_per_minute=2),
    ApiKey("eve", "secret-e", None, 1),
)


@pytest.fixture(scope="module")
def guarded(tokenizer):
    with api_server.serve(tokenizer, keys=KEYS, allowed_hosts=("models.example.org",), max_body_bytes=2000) as server:
        yield server


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo/7", "/metrics", "/openapi.json", "/nothing"])
@pytest.mark.parametrize(("headers", "code"), [({}, "missing_api_key"), (bearer("secret"), "invalid_api_key")])
def test_every_route_needs_a_key(guarded, path, headers, code):
    response = httpx.get(guarded.url + path, headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert (response.json()["error"]["type"], response.json()["error"]["code"]) == ("authentication_error", code)


def test_health_needs_no_key(guarded):
    assert httpx.get(f"{guarded.url}/health").json() == {"status": "ready"}


def test_the_client_library_raises_its_error_for_a_wrong_key(guarded):
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)

    with pytest.raises(openai.AuthenticationError, match="Unknown API key"):
        client.models.list()


def test_a_key_opens_the_routes(guarded):
    assert httpx.get(f"{guarded.url}/v1/models", headers=bearer("secret-a")).status_code == 200


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic secret-a", "secret-a", "Bearer \udcff"])
def test_malformed_authorization_is_no_key(authorization):
    with pytest.raises(ApiError) as error:
        KeyGuard(None, KEYS).find(authorization)

    assert error.value.status == 401


def test_a_key_has_its_rate(guarded):
    responses = [httpx.get(f"{guarded.url}/v1/models", headers=bearer("secret-b")) for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert 1 <= int(responses[2].headers["retry-after"]) <= 60
    assert responses[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"{guarded.url}/v1/models", headers=bearer("secret-a")).status_code == 200


def test_a_rate_counts_the_last_sixty_seconds():
    use = KeyUse(ApiKey("bob", "secret", requests_per_minute=2))
    use.start(100.0)
    use.start(130.0)

    with pytest.raises(ApiError) as error:
        use.start(150.0)
    assert error.value.headers["Retry-After"] == "10"
    use.start(160.0)
    assert list(use.times) == [130.0, 160.0]


def test_a_key_has_its_concurrency(guarded):
    guarded.engine.text, guarded.engine.delay = api_server.TEXT * 10, 0.01
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret-e", max_retries=0)
    with client.chat.completions.create(model="", **BODY, stream=True) as stream:
        next(iter(stream))
        second = httpx.post(guarded.url + CHAT, json=BODY, headers=bearer("secret-e"))
    deadline = time.monotonic() + 5
    while guarded.engine.running and time.monotonic() < deadline:
        time.sleep(0.01)

    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert second.json()["error"]["code"] == "concurrency_limit_exceeded"
    guarded.engine.text = "It"
    assert httpx.post(guarded.url + CHAT, json=BODY, headers=bearer("secret-e")).status_code == 200


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1.evil.org", "", "localhost.evil:80", "[::2]:80"])
def test_other_hosts_are_refused(guarded, host):
    response = httpx.get(f"{guarded.url}/health", headers={"Host": host})

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "models.example.org:443"])
def test_loopback_names_and_configured_hosts_are_allowed(guarded, host):
    assert httpx.get(f"{guarded.url}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://127.0.0.1:1"])
def test_web_pages_of_other_origins_are_refused(server, origin):
    response = httpx.post(server.url + CHAT, json=BODY, headers={"Origin": origin})

    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert server.engine.requests == []


def test_the_own_origin_is_allowed(server):
    assert httpx.post(server.url + CHAT, json=BODY, headers={"Origin": server.url}).status_code == 200


def test_an_allowed_origin_gets_the_headers_of_browsers(tokenizer):
    origin = "https://app.example.org"
    with api_server.serve(tokenizer, allowed_origins=(origin,), keys=KEYS) as server:
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(server.url + CHAT, headers=asks)
        answer = httpx.post(server.url + CHAT, json=BODY, headers={"Origin": origin, **bearer("secret-a")})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


def test_a_large_body_is_refused(guarded):
    response = httpx.post(guarded.url + CHAT, content=b"x" * 2001, headers=bearer("secret-a"))

    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert response.json()["error"]["message"].startswith("The body has 2001 bytes; at most 2000 are allowed.")


def test_a_large_chunked_body_is_refused_while_it_arrives(guarded):
    parts = (b"x" * 1000 for _ in range(10))
    response = httpx.post(guarded.url + CHAT, content=parts, headers=bearer("secret-a"))

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_chunked_body_within_the_limit_is_read(guarded):
    parts = (part for part in (b'{"messages": [{"role": "user", ', b'"content": "Hi"}], "max_tokens": 1}'))

    assert httpx.post(guarded.url + CHAT, content=parts, headers=bearer("secret-a")).status_code == 200


def test_compressed_bodies_are_refused(server):
    response = httpx.post(server.url + CHAT, content=b"x", headers={"Content-Encoding": "gzip"})

    assert response.status_code == 415


@pytest.mark.parametrize(
    "make",
    [
        lambda: ApiKey("", "secret"),
        lambda: ApiKey("a\n", "secret"),
        lambda: ApiKey("a", ""),
        lambda: ApiKey("a", "secret", requests_per_minute=0),
        lambda: ApiSettings(keys=(ApiKey("a", "x"), ApiKey("a", "y"))),
        lambda: ApiSettings(keys=(ApiKey("a", "x"), ApiKey("b", "x"))),
    ],
)
def test_wrong_settings_of_keys_are_refused(make):
    with pytest.raises(ValueError, match="key"):
        make()


def test_a_secret_is_not_shown():
    assert "secret-a" not in repr(ApiSettings(keys=KEYS))
