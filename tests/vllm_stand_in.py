"""A stand-in for vLLM's OpenAI server: the routes, fields and events that `VllmEngine` uses, without a model.

Token i of an answer is (sum of the prompt + i) % 300; a token of `stop_token_ids` ends it. Every request is appended to
the file RECORD. Options that vLLM 0.33 does not have are rejected.
"""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "host", "port", "dtype", "max-num-seqs", "max-model-len", "max-lora-rank"):
    parser.add_argument(f"--{name}")
for name in ("generation-config", "structured-outputs-config"):
    parser.add_argument(f"--{name}")
for name in ("trust-remote-code", "enable-lora"):
    parser.add_argument(f"--{name}", action="store_true")
OPTIONS = parser.parse_args()
RECORD = Path(os.environ["RECORD"])
ADAPTERS = os.environ.get("VLLM_LORA_RESOLVER_CACHE_DIR", "")


def adapter_exists(name):
    """Resolve an adapter like vLLM's filesystem resolver."""
    path = Path(ADAPTERS) / name / "adapter_config.json"
    if not ADAPTERS or not path.is_file():
        return False
    config = json.loads(path.read_text())
    return config["peft_type"] == "LORA" and config["base_model_name_or_path"] == OPTIONS.model


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Log nothing."""

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        return self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}"

    def do_GET(self):
        if self.refused():
            return self.answer({"error": "Unauthorized"}, 401)
        if self.path == "/v1/models":
            return self.answer({"data": [{"id": "model", "max_model_len": int(OPTIONS.max_model_len or 777)}]})
        return self.answer({"version": "0.33.0"} if self.path == "/version" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with RECORD.open("a") as record:
            record.write(json.dumps({"path": self.path, "options": vars(OPTIONS), "body": body}) + "\n")
        if self.refused():
            return self.answer({"error": {"message": "Unauthorized"}}, 401)
        if body["model"] != "model" and not adapter_exists(body["model"]):
            return self.answer({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        if "bad" in json.dumps(body.get("structured_outputs", "")):
            return self.answer({"error": {"message": "Grammar error"}}, 400)
        return self.stream(body)

    def stream(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for event in events(body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.002)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            with RECORD.open("a") as record:
                record.write(json.dumps({"cancelled": True}) + "\n")
        self.close_connection = True


def events(body):
    """Yield the events of an answer, two tokens per event."""
    ids = []
    for i in range(body["max_tokens"]):
        ids.append((sum(body["prompt"]) + i) % 300)
        if ids[-1] in body["stop_token_ids"]:
            break
    for start in range(0, len(ids), 2):
        part = ids[start : start + 2]
        last = start + 2 >= len(ids)
        reason = ("stop" if part[-1] in body["stop_token_ids"] else "length") if last else None
        choice = {"index": 0, "text": "x" * len(part), "token_ids": part, "finish_reason": reason, "logprobs": None}
        if body.get("logprobs") is not None:
            tops = [
                {f"token_id:{i}": -0.5, **{f"token_id:{i + 1 + k}": -1.0 - k for k in range(body["logprobs"])}}
                for i in part
            ]
            names = [f"token_id:{i}" for i in part]
            choice["logprobs"] = {"tokens": names, "token_logprobs": [-0.5] * len(part), "top_logprobs": tops}
        yield {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}


ThreadingHTTPServer((OPTIONS.host, int(OPTIONS.port)), Handler).serve_forever()
