"""An engine that answers by a script, without a model."""

import asyncio
import math
import threading

from tuneline.serve.engines.interface import EngineFailedError, EngineLoad, Token


class ScriptedEngine:
    """Answers each request with the same tokens; all engines of a test are listed in `made`."""

    name = "transformers"
    unsupported = frozenset()
    max_length = 512

    def __init__(self, spec, ids=(70, 71, 72, 73), logprob=-0.5, delay=0.0, ends=True):
        self.spec, self.ids, self.logprob, self.delay, self.ends = spec, list(ids), logprob, delay, ends
        self.adapters = tuple(spec.adapters)
        self.requests = []
        self.running = 0
        self.closed = False
        self.thread = threading.current_thread()

    async def generate(self, request):
        self.requests.append(request)
        self.running += 1
        try:
            ids = self.ids[: request.max_tokens]
            for number, token in enumerate(ids, start=1):
                await asyncio.sleep(self.delay)
                if self.closed:
                    raise EngineFailedError("closed")
                end = number == len(ids) and self.ends
                logprob = None if request.top_logprobs is None else self.logprob
                yield Token(token, logprob, finish="stop" if end else None)
        finally:
            self.running -= 1

    async def embed(self, ids):
        return [1.0]

    async def score(self, ids):
        return float(self.logprob)

    def current_load(self):
        return EngineLoad(self.running, 0)

    def is_healthy(self):
        return not self.closed

    def close(self):
        self.closed = True


class Factory:
    """Makes scripted engines, with another script per version folder if one is set."""

    def __init__(self, **script):
        self.script, self.scripts, self.made = script, {}, []

    def __call__(self, spec):
        script = self.script | self.scripts.get(spec.folder, {})
        if isinstance(script.get("error"), Exception):
            raise script["error"]
        engine = ScriptedEngine(spec, **script)
        self.made.append(engine)
        return engine

    @property
    def open(self):
        return [engine for engine in self.made if not engine.closed]


NAN = math.nan
