"""A stand-in for a server with OpenAI's API: scripted answers, recorded requests, and clients that go away."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any]], dict[str, Any]]
"""Body of a request -> `pieces` (texts), `reasoning`, `tool_calls`, `finish`, `delay` in seconds, or `status`."""


class OpenAIServer:
    """The state of a server."""

    def __init__(self, script: Script, models: tuple[str, ...], key: str | None) -> None:
        self.script, self.models, self.key = script, models, key
        self.requests: list[dict[str, Any]] = []
        self.disconnects = 0
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self._is_allowed():
            self._json(200, {"data": [{"id": name} for name in self.server.state.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        self.server.state.requests.append(body)
        answer = self.server.state.script(body)
        if answer.get("status"):
            self._json(answer["status"], answer["body"], answer.get("headers", {}))
        elif body.get("stream"):
            self._stream(body, answer)
        else:
            choice = {"text": "".join(answer["pieces"]), "finish_reason": answer.get("finish", "stop")}
            usage = {"completion_tokens": len(answer["pieces"])}
            self._json(200, {"choices": [choice], "model": "tiny/1", "usage": usage})

    def _is_allowed(self):
        key = self.server.state.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._json(401, {"error": {"message": "The key is wrong.", "type": "authentication_error"}})
        return False

    def _json(self, status, content, headers=None):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body, answer):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        deltas = [{"reasoning_content": piece} for piece in answer.get("reasoning", [])]
        deltas += [{"content": piece} for piece in answer.get("pieces", [])]
        deltas += [{"tool_calls": [call]} for call in answer.get("tool_calls", [])]
        try:
            for delta in deltas:
                self._event({"choices": [{"delta": delta}]})
                time.sleep(answer.get("delay", 0))
            if not answer.get("breaks"):
                self._end(body, answer, len(deltas))
        except (BrokenPipeError, ConnectionResetError):
            self.server.state.disconnects += 1

    def _end(self, body, answer, num_deltas):
        if answer.get("error"):
            self._event({"error": {"message": answer["error"]}})
            return
        self._event({"choices": [{"delta": {}, "finish_reason": answer.get("finish", "stop")}]})
        if body.get("stream_options"):
            self._event({"choices": [], "usage": {"completion_tokens": num_deltas}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content):
        self.wfile.write(f"data: {json.dumps({'model': 'tiny/1', **content})}\n\n".encode())
        self.wfile.flush()


@contextmanager
def serve(script: Script, models: tuple[str, ...] = ("tiny/1",), key: str | None = None):
    """Serve on a free port of the loopback while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.state = OpenAIServer(script, models, key)
    server.state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.state
    finally:
        server.shutdown()
        server.server_close()


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Answer with the last message."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return {"pieces": ["You said: ", *text.split(" ")]}
