"""An engine that answers every request with the same tokens."""

import asyncio

from tuneline.serve.engines.interface import EngineLoad, Token


class ScriptedEngine:
    """Implements the protocol `Engine`."""

    name = "scripted"
    adapters = ()

    def __init__(self, ids, end=2, delay=0.0, max_length=512, unsupported=frozenset()):
        self.ids, self.end, self.delay = ids, end, delay
        self.max_length, self.unsupported = max_length, unsupported
        self.requests, self.open_answers, self.closed = [], 0, False

    async def generate(self, request):
        self.requests.append(request)
        self.open_answers += 1
        try:
            for number, token in enumerate([*self.ids, self.end], start=1):
                await asyncio.sleep(self.delay)
                finish = "stop" if token in request.stop_ids else "length" if number == request.max_tokens else None
                yield Token(token, finish=finish)
                if finish:
                    return
        finally:
            self.open_answers -= 1

    async def embed(self, ids):
        raise NotImplementedError

    async def score(self, ids):
        raise NotImplementedError

    def current_load(self):
        return EngineLoad(self.open_answers, 0)

    def is_healthy(self):
        return not self.closed

    def close(self):
        self.closed = True
