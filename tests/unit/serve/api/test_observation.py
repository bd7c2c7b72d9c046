"""Metrics and the access log."""

import logging
import re
import statistics
import threading
import time

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import api_server
from tuneline.serve.api.settings import ApiKey

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
HEADERS = {"Authorization": "Bearer secret"}


@pytest.fixture
def observed(tokenizer):
    with api_server.serve(tokenizer, keys=(ApiKey("alice", "secret"),)) as server:
        yield server


def scrape(server):
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", headers=HEADERS).text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_requests_are_counted_by_route_status_and_version(observed):
    httpx.post(observed.url + CHAT, json=BODY, headers=HEADERS)
    httpx.post(observed.url + CHAT, json={**BODY, "top_k": "x"}, headers=HEADERS)
    httpx.get(f"{observed.url}/made/up/{'x' * 50}", headers=HEADERS)
    httpx.post(observed.url + CHAT, json=BODY)
    metrics = scrape(observed)

    assert metrics["tuneline_requests_total", CHAT, "200", "demo/7"] == 1
    assert metrics["tuneline_requests_total", "-", CHAT, "400"] == 1
    assert metrics["tuneline_requests_total", "-", CHAT, "401"] == 1
    assert metrics["tuneline_requests_total", "-", "404", "unknown"] == 1
    assert metrics["tuneline_errors_total", CHAT, "invalid_value"] == 1


def test_tokens_and_times_are_observed_by_version(observed):
    observed.engine.delay = 0.005
    usage = httpx.post(observed.url + CHAT, json=BODY, headers=HEADERS).json()["usage"]
    metrics = scrape(observed)

    assert metrics["tuneline_prompt_tokens_total", "demo/7"] == usage["prompt_tokens"]
    assert metrics["tuneline_completion_tokens_total", "demo/7"] == usage["completion_tokens"]
    assert metrics["tuneline_time_to_first_token_seconds_count", "demo/7"] == 1
    assert metrics["tuneline_time_to_first_token_seconds_sum", "demo/7"] > 0.005
    assert 0.005 < metrics["tuneline_time_per_token_seconds_sum", "demo/7"] < 0.1


def test_the_load_of_the_engine_is_read_at_each_scrape(observed):
    observed.engine.waiting = 3
    observed.engine.running = 2
    metrics = scrape(observed)

    assert metrics["tuneline_engine_waiting", "demo/7"] == 3
    assert metrics["tuneline_engine_running", "demo/7"] == 2


def test_a_request_is_one_line_without_its_prompt(observed, caplog):
    caplog.set_level(logging.INFO, "tuneline.serve.access")
    answer = httpx.post(observed.url + CHAT, json=BODY, headers=HEADERS).json()
    httpx.post(observed.url + CHAT, json=BODY)
    lines = [record.getMessage() for record in caplog.records if record.name == "tuneline.serve.access"]

    tokens = f"in={answer['usage']['prompt_tokens']} out={answer['usage']['completion_tokens']}"
    pattern = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ alice POST {CHAT} 200 demo/7 {tokens} \d+\.\d{{3}}s"
    assert re.fullmatch(pattern, lines[0])
    assert lines[1].endswith(" error=missing_api_key")
    assert "secret" not in "".join(lines)
    assert "Hi" not in "".join(lines)


def test_prompts_are_logged_on_request(tokenizer, caplog):
    caplog.set_level(logging.INFO, "tuneline.serve.access")
    with api_server.serve(tokenizer, log_prompts=True) as server:
        httpx.post(server.url + CHAT, json={"messages": [{"role": "user", "content": "One\nand two"}]})
        httpx.post(f"{server.url}/v1/tokenize", json={"text": "Three"})
    lines = [record.getMessage() for record in caplog.records if record.name == "tuneline.serve.access"]

    assert lines[0].endswith('prompts=[{"role":"user","content":"One\\nand two"}]')
    assert lines[1].endswith('prompts=[{"text":"Three"}]')


def test_a_client_that_disconnects_has_status_499(observed):
    observed.engine.delay, observed.engine.text = 0.01, api_server.TEXT * 40
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(observed.url + CHAT, json=BODY, headers=HEADERS, timeout=0.2)

    for _ in range(100):
        metrics = scrape(observed)
        if ("tuneline_requests_total", CHAT, "499", "demo/7") in metrics:
            break
    assert metrics["tuneline_requests_total", CHAT, "499", "demo/7"] == 1
    assert metrics["tuneline_requests_answering", "demo/7"] == 0


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_the_front_costs_less_than_three_milliseconds_of_cpu(observed, fields):
    thread = next(thread for thread in threading.enumerate() if thread.name == "tuneline-api")
    clock = time.pthread_getcpuclockid(thread.ident)
    seconds = []
    with httpx.Client(headers=HEADERS) as client:
        for _ in range(40):
            start = time.clock_gettime(clock)
            client.post(observed.url + CHAT, json={**BODY, **fields}).raise_for_status()
            seconds.append(time.clock_gettime(clock) - start)

    assert statistics.median(seconds) < 0.003
