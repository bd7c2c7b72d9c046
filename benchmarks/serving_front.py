"""CPU time of the HTTP front per request, with an engine that costs nothing.

    python -m benchmarks.serving_front [--requests 300]

The real server runs in a thread of this process, with an API key and a scripted engine; the CPU clock of that thread is
read before and after the requests of a keep-alive client.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests import api_server, tiny
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.serve.api.settings import ApiKey

KEY = "benchmark-key-0000"
WARM_UP = 50
MESSAGES = [{"role": "user", "content": "What is one and two?"}]
REQUESTS = {
    f"{'stream' if stream else 'whole answer'}, {num_tokens} tokens": {"max_tokens": num_tokens, "stream": stream}
    for stream in (False, True)
    for num_tokens in (1, 32)
}


def cpu_seconds(thread: threading.Thread) -> float:
    """Return the CPU time of a thread."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def measure(host: str, body: dict[str, Any], num_requests: int) -> float:
    """Return the CPU milliseconds of the server thread per request."""
    connection = http.client.HTTPConnection(host)
    thread = next(each for each in threading.enumerate() if each.name == "tuneline-api")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    start = 0.0
    for i in range(WARM_UP + num_requests):
        if i == WARM_UP:
            start = cpu_seconds(thread)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    return 1000 * (cpu_seconds(thread) - start) / num_requests


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = load_tokenizer_from(tiny.build_model(Path(scratch) / "model"))
        engine = api_server.ScriptedEngine(tokenizer, api_server.TEXT * 8)
        with api_server.serve(tokenizer, engine=engine, keys=(ApiKey("benchmark", KEY, 10**6),)) as server:
            host = server.url.removeprefix("http://")
            for name, fields in REQUESTS.items():
                print(f"{name}: {measure(host, {'messages': MESSAGES, **fields}, args.requests):.2f} ms")


if __name__ == "__main__":
    main()
