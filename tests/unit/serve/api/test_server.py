"""Starting and stopping the server."""

import asyncio
import os
import signal
import socket
import threading
import time

import httpx2 as httpx
import pytest

from tests import api_server
from tuneline.serve.api import server as server_module
from tuneline.serve.api.app import create_app
from tuneline.serve.api.settings import ApiSettings

BODY = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_a_port_in_use_is_one_clear_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(
            server_module.ServerError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"
        ):
            server_module.bind("127.0.0.1", port)


def test_an_unknown_host_is_one_clear_error():
    with pytest.raises(server_module.ServerError, match="Choose another host or port"):
        server_module.bind("256.0.0.1", 0)


def test_the_url_of_ipv6_has_brackets():
    try:
        connection = server_module.bind("::1", 0)
    except server_module.ServerError:
        pytest.skip("no IPv6")
    with connection:
        assert server_module.get_url(connection).startswith("http://[::1]:")


@pytest.mark.parametrize(("stop_seconds", "is_complete"), [(5, True), (1, False)])
def test_a_running_answer_has_a_limited_time_when_the_server_stops(tokenizer, stop_seconds, is_complete):
    engine = api_server.ScriptedEngine(tokenizer, api_server.TEXT * 5, delay=0.05)
    deployment = api_server.build_deployment(tokenizer, engine)
    settings = ApiSettings()
    app = create_app(deployment, settings)
    server = server_module.build_server(app, settings, stop_seconds)
    connection = server_module.bind("127.0.0.1", 0)
    url = server_module.get_url(connection)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[connection])))
    thread.start()
    while not server.started:
        time.sleep(0.01)

    text, is_closed_early = "", False
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY) as response:
        try:
            for part in response.iter_text():
                text += part
                server.should_exit = True
        except httpx.RemoteProtocolError:
            is_closed_early = True
    thread.join(10)

    assert not thread.is_alive()
    assert ("[DONE]" in text) == is_complete
    assert is_closed_early != is_complete
    assert engine.is_closed
    assert engine.running == 0


class Stopped(Exception):
    """Raised by the handler of the test's process."""


def test_run_announces_its_url_and_passes_the_signal_on_after_a_graceful_stop(tokenizer):
    def handle(number, frame):
        raise Stopped

    engine = api_server.ScriptedEngine(tokenizer)
    settings, statuses = ApiSettings(), []

    def on_listening(url):
        def stop():
            statuses.append(httpx.get(f"{url}/health").status_code)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop).start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        app = create_app(api_server.build_deployment(tokenizer, engine), settings)
        with pytest.raises(Stopped):
            server_module.run(app, "127.0.0.1", 0, settings, on_listening=on_listening)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert statuses == [200]
    assert engine.is_closed


def test_a_server_in_a_thread_ends_with_its_block(tokenizer):
    with api_server.serve(tokenizer) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
