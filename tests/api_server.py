"""A scripted engine behind the real API on a real server, for tests of the HTTP front."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tuneline.serve.api.app import create_app
from tuneline.serve.api.server import run_in_thread
from tuneline.serve.api.settings import ApiSettings
from tuneline.serve.deploy.interface import ModelEntry, ServedVersion, UnknownModelError
from tuneline.serve.engines.interface import EngineFailedError, EngineLoad, GenerationRequest, Token

TEXT = "It is three, or four."


class ScriptedEngine:
    """Answers each request with a text; records the requests, and how many of them run."""

    def __init__(self, tokenizer: Any, text: str = TEXT, *, delay: float = 0.0, max_length: int = 512) -> None:
        self.tokenizer, self.text, self.delay, self.max_length = tokenizer, text, delay, max_length
        self.name = "scripted"
        self.unsupported: frozenset[str] = frozenset()
        self.adapters: tuple[str, ...] = ()
        self.requests: list[GenerationRequest] = []
        self.running = 0
        self.waiting = 0
        self.generated = 0
        self.fail_after: int | None = None
        self.error: Exception = EngineFailedError("The engine died.")
        self.is_closed = False

    def reset(self) -> None:
        """Forget all requests, and answer as at the start."""
        type(self).__init__(self, self.tokenizer, max_length=self.max_length)

    def script(self, request: GenerationRequest) -> list[int]:
        ids = self.tokenizer(self.text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        self.requests.append(request)
        self.running += 1
        try:
            ids = self.script(request)[: request.max_tokens]
            for i, token in enumerate(ids):
                if i == self.fail_after:
                    raise self.error
                await asyncio.sleep(self.delay)
                self.generated += 1
                finish = None if i < len(ids) - 1 else ("stop" if token in request.stop_ids else "length")
                yield self._token(token, request.top_logprobs, finish)
        finally:
            self.running -= 1

    def _token(self, token: int, top_logprobs: int | None, finish: Any) -> Token:
        if top_logprobs is None:
            return Token(token, finish=finish)
        top = tuple((other, -1.0 - other) for other in range(70, 70 + top_logprobs))
        return Token(token, -0.5, top, finish)

    async def embed(self, ids: list[int]) -> list[float]:
        return [float(len(ids)), 0.25, -0.5]

    async def score(self, ids: list[int]) -> float:
        return float(len(ids))

    def current_load(self) -> EngineLoad:
        return EngineLoad(self.running, self.waiting)

    def is_healthy(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True


@dataclass
class OneDeployment:
    """Serves one version under a few names."""

    version: ServedVersion
    names: tuple[str, ...] = ("demo@champion", "demo/7")
    ready: bool = True
    acquired: list[str] = field(default_factory=list)
    held: int = 0

    @asynccontextmanager
    async def acquire(self, model: str) -> AsyncIterator[ServedVersion]:
        if model and model not in self.names:
            raise UnknownModelError.among("model", model, self.names)
        self.acquired.append(model)
        self.held += 1
        try:
            yield self.version
        finally:
            self.held -= 1

    def models(self) -> list[ModelEntry]:
        return [ModelEntry(name, self.version.name, 1_700_000_000, {"stage": "sft"}) for name in self.names]

    def is_ready(self) -> bool:
        return self.ready

    async def close(self) -> None:
        self.version.engine.close()


@dataclass
class Server:
    """A running server and what is behind it."""

    url: str
    engine: ScriptedEngine
    deployment: OneDeployment
    app: Any

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def build_deployment(tokenizer: Any, engine: ScriptedEngine, *, is_reward_model: bool = False) -> OneDeployment:
    version = ServedVersion(
        name="demo/7",
        folder=Path("model"),
        tokenizer=tokenizer,
        engine=engine,
        fingerprint="fp_1234",
        stop_ids=(tokenizer.eos_token_id,),
        is_reward_model=is_reward_model,
    )
    return OneDeployment(version)


@contextmanager
def serve(
    tokenizer: Any, *, engine: ScriptedEngine | None = None, reward: bool = False, **settings: Any
) -> Iterator[Server]:
    """Run the API with a scripted engine until the block ends."""
    engine = engine or ScriptedEngine(tokenizer)
    deployment = build_deployment(tokenizer, engine, is_reward_model=reward)
    api_settings = ApiSettings(**settings)
    app = create_app(deployment, api_settings)
    with run_in_thread(app, api_settings) as url:
        yield Server(url, engine, deployment, app)


def check_refusal(
    server: Server, path: str, body: Any, status: int, param: str | None, code: str, message: str
) -> None:
    """Send a bad request, and check its exact answer; the engine must not see it."""
    response = httpx.post(server.url + path, content=body if isinstance(body, str) else json.dumps(body))

    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assert (response.status_code, response.json()) == (status, {"error": error})
    assert server.engine.requests == []
