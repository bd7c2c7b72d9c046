"""A server with the real API: names, a promotion while requests run, and a stop that waits for answers."""

import asyncio
import os
import signal
import threading
from contextlib import contextmanager

import openai
import pytest

from tests.unit.serve.deploy.scripted import Factory
from tuneline.config.parsing.key_file import KeyEntry
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import TunelineError
from tuneline.serve import run
from tuneline.serve.deploy import prepare

KEY = "k" * 20
KEYS = {"web": KeyEntry(key=KEY)}


@pytest.fixture
def factory(monkeypatch):
    """All engines of a server answer by a script."""
    factory = Factory(ids=[70, 71, 72, 73])
    monkeypatch.setattr(prepare.Preparation, "load", _load_with(factory, prepare.Preparation.load))
    return factory


def _load_with(factory, load):
    def load_scripted(self, located):
        object.__setattr__(self, "make_engine", factory)
        return load(self, located)

    return load_scripted


@contextmanager
def client_thread(work):
    """Run a client in a thread as soon as the server listens, then stop the server; yields the callback and results."""
    results, threads = [], []

    def client(url):
        try:
            results.append(work(url))
        except BaseException as error:
            results.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def start(url):
        threads.append(threading.Thread(target=client, args=(url,)))
        threads[0].start()

    yield start, results
    threads[0].join()


def serve(config, work):
    """Serve until the client has finished; returns its result and the name of the signal."""
    loaded = []
    with client_thread(work) as (start, results):
        name = asyncio.run(run.serve(config, KEYS, on_loaded=lambda *parts: loaded.append(parts), on_listening=start))
    if isinstance(results[0], BaseException):
        raise results[0]
    assert len(loaded) == 1
    return results[0], name


def test_the_openai_client_chats_with_a_served_folder(tiny_model, home, factory):
    def work(url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
        answer = client.chat.completions.create(model="model", messages=[{"role": "user", "content": "Hi"}])
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0).models.list()
        return answer, [model.id for model in client.models.list()]

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    (answer, names), name = serve(ServeConfig(model=str(tiny_model), port=0), work)

    assert (answer.model, answer.usage.completion_tokens) == ("model", 4)
    assert answer.system_fingerprint.startswith("fp_")
    assert names == ["model"]
    assert name == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert not factory.open


def test_a_stop_waits_for_running_answers(tiny_model, home, factory):
    factory.script["delay"] = 0.05

    def work(url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
        messages = [{"role": "user", "content": "Hi"}]
        stream = client.chat.completions.create(model="model", messages=messages, stream=True)
        chunks = [next(iter(stream))]
        os.kill(os.getpid(), signal.SIGTERM)
        return [*chunks, *stream]

    chunks, _ = serve(ServeConfig(model=str(tiny_model), port=0), work)

    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_port_in_use_is_reported_before_the_model_is_loaded(tiny_model, home, factory):
    from tuneline.serve.api import server

    taken = server.bind("127.0.0.1", 0)
    taken.listen()
    config = ServeConfig(model=str(tiny_model), port=taken.getsockname()[1])

    with pytest.raises(TunelineError, match="Cannot listen on 127.0.0.1:") as caught:
        asyncio.run(run.serve(config, {}, on_loaded=print, on_listening=print))
    taken.close()
    assert "\n" not in str(caught.value)
    assert not factory.made


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_model, home, factory):
    factory.script["error"] = TunelineError("the weights are damaged.")

    with pytest.raises(TunelineError, match="the weights are damaged"):
        asyncio.run(run.serve(ServeConfig(model=str(tiny_model), port=0), {}, on_loaded=print, on_listening=print))


def test_limits_and_hosts_of_the_settings_reach_the_api():
    config = ServeConfig(
        model="m",
        host="192.168.1.2",
        allowed_hosts=["models.example.org"],
        limits={"max_queue_length": 3, "max_new_tokens": 5, "request_seconds": 7, "max_body_bytes": 2048},
        log_prompts=True,
    )
    keys = {"web": KeyEntry(key=KEY, requests_per_minute=60, max_concurrent=2)}

    settings = run.api_settings(config, keys)

    assert (settings.max_waiting, settings.max_tokens, settings.max_request_seconds) == (3, 5, 7)
    assert settings.max_body_bytes == 2048
    assert settings.log_prompts
    assert settings.allowed_hosts == ("models.example.org", "192.168.1.2")
    (key,) = settings.keys
    assert (key.name, key.secret, key.requests_per_minute, key.max_concurrent) == ("web", KEY, 60, 2)
