"""Slow, broken and vanished clients, over raw sockets."""

import contextlib
import json
import socket
import time

import httpx2 as httpx
import pytest

from tests import api_server

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def impatient(tokenizer):
    engine = api_server.ScriptedEngine(tokenizer, max_length=200_000)
    limits = {"read_timeout_seconds": 0.4, "write_timeout_seconds": 0.6, "keep_alive_seconds": 1}
    with api_server.serve(tokenizer, engine=engine, **limits) as server:
        yield server


@pytest.fixture(autouse=True)
def reset(impatient):
    engine = impatient.engine
    engine.text, engine.delay, engine.generated, engine.requests = api_server.TEXT, 0.0, 0, []


def body(**fields):
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


def request(content, length=None, path=CHAT):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length or len(content)}\r\n\r\n"
    return head.encode() + content


def connect(server, receive_bytes=None):
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(5)
    connection.connect(("127.0.0.1", server.port))
    return connection


def read_all(connection):
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_slot(impatient, stream):
    impatient.engine.text, impatient.engine.delay = api_server.TEXT * 100, 0.01
    with connect(impatient) as connection:
        connection.sendall(request(body(stream=stream)))
        assert wait_until(lambda: impatient.engine.running == 1)

    assert wait_until(lambda: impatient.engine.running == 0, seconds=1)
    assert impatient.engine.generated < 200


def test_a_client_that_does_not_read_loses_its_stream_and_stops_nobody(impatient):
    impatient.engine.text = api_server.TEXT * 5000
    with connect(impatient, receive_bytes=4096) as slow:
        slow.sendall(request(body(stream=True)))
        assert wait_until(lambda: impatient.engine.running == 1)
        start = time.monotonic()
        impatient.engine.text = api_server.TEXT
        answer = httpx.post(impatient.url + CHAT, content=body())
        seconds = time.monotonic() - start

        assert answer.json()["choices"][0]["message"]["content"] == api_server.TEXT
        assert seconds < 1
        assert wait_until(lambda: impatient.engine.running == 0, seconds=4)


def test_a_slow_reader_that_reads_gets_everything(impatient):
    impatient.engine.text = api_server.TEXT * 300
    data = b""
    with connect(impatient, receive_bytes=4096) as slow:
        slow.sendall(request(body(stream=True)))
        start = time.monotonic()
        while b"data: [DONE]" not in data:
            data += slow.recv(16384)
            time.sleep(0.01)

    assert time.monotonic() - start > 0.6
    assert data.count(b'"finish_reason":"stop"') == 1


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"POST / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_connection_without_complete_headers_is_closed(impatient, sent):
    with connect(impatient) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""

    assert time.monotonic() - start < 2


def test_an_idle_connection_is_closed_after_its_answer(impatient):
    with connect(impatient) as connection:
        connection.sendall(request(body(max_tokens=1)))
        first = connection.recv(65536)
        connection.sendall(b"POST /v1/ch")
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""

    assert b"200 OK" in first
    assert time.monotonic() - start < 3


def test_two_requests_of_one_connection_are_answered(impatient):
    with connect(impatient) as connection:
        connection.sendall(request(body(max_tokens=1)) + request(body(max_tokens=2)))
        data = b""
        while data.count(b'"finish_reason":"length"') < 2:
            data += connection.recv(65536)

    assert data.count(b"HTTP/1.1 200 OK") == 2


def test_a_body_that_stops_is_a_timeout(impatient):
    with connect(impatient) as connection:
        connection.sendall(request(b'{"messages": [', length=100))
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"read_timeout"' in answer
    assert impatient.engine.requests == []


def test_a_body_that_trickles_has_a_limited_time(tokenizer):
    with api_server.serve(tokenizer, max_request_seconds=0.5) as server, connect(server) as connection:
        connection.sendall(request(b"{", length=1000))
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 4:
                connection.sendall(b" ")
                time.sleep(0.1)
        seconds = time.monotonic() - start

    assert seconds < 2


def test_the_rest_of_a_refused_body_has_a_limited_time(impatient):
    with connect(impatient) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: evil.example.org\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 4:
                connection.sendall(b"1\r\nx\r\n")
                time.sleep(0.1)
        seconds = time.monotonic() - start

    assert seconds < 3


def test_a_body_that_breaks_off_is_no_request(impatient):
    with connect(impatient) as connection:
        connection.sendall(request(b'{"messages": [', length=100))

    assert httpx.post(impatient.url + CHAT, content=body()).status_code == 200
    assert len(impatient.engine.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
    ],
)
def test_broken_http_is_refused(impatient, data):
    with connect(impatient) as connection:
        connection.sendall(data)
        answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{impatient.url}/health").status_code == 200


def test_too_many_connections_get_an_answer(tokenizer):
    with api_server.serve(tokenizer, max_connections=3) as server:
        idle = [connect(server) for _ in range(3)]
        refused = httpx.get(f"{server.url}/health")
        for connection in idle:
            connection.close()

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
