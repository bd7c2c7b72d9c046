"""The engine `llama_cpp`: llama.cpp's server on a GGUF file, in a child process.

Presence and frequency penalties are not supported: llama.cpp applies them to the prompt too. Grammars are compiled by
llguidance, as in the engine `transformers`.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import llguidance
from transformers import PreTrainedTokenizerBase

from tuneline.errors import SourceError
from tuneline.export.gguf.llama_server import KEY_VARIABLE, ServerSettings, check_installed, command
from tuneline.serve.engines import http_stream
from tuneline.serve.engines.child import ChildProcess, ChildSpec
from tuneline.serve.engines.interface import EngineFailedError, EngineLoad, GenerationRequest, Grammar, Token
from tuneline.serve.engines.token_bytes import TokenBytes

SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
"""Order of the sampling steps, as in transformers."""

SPARE_TOKENS = 8
"""Tokens beyond the limit of a request, to complete a character; they are not returned."""

DEFAULT_CONTEXT = 4096
JSON_WHITE_SPACE = r"(\n {0,16}| )?"
"""White space between the tokens of JSON; bounded, because small models otherwise write it until the limit."""


class LlamaCppEngine:
    """A GGUF file served by llama.cpp."""

    name = "llama_cpp"

    def __init__(
        self, child: ChildProcess, tokenizer: PreTrainedTokenizerBase, context: int, *, embeddings: bool
    ) -> None:
        self.child = child
        self.max_length = context - SPARE_TOKENS
        self.adapters: tuple[str, ...] = ()
        self.unsupported = frozenset({"presence_penalty", "frequency_penalty", "score"})
        self.unsupported |= frozenset() if embeddings else {"embeddings"}
        self.clients = http_stream.Clients(child)
        self._tokens = TokenBytes(tokenizer)
        self._running = 0
        self._slots = 1

    @classmethod
    def load(
        cls,
        file: Path | None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_batch_size: int = 4,
        max_length: int | None = None,
        threads: int = 0,
        embeddings: bool = False,
        start_seconds: float = 600.0,
    ) -> "LlamaCppEngine":
        """Start the child process and load the model.

        Args:
            file: GGUF file.
            tokenizer: Tokenizer of the model.
            max_batch_size: Number of requests that are decoded together; others wait.
            max_length: Maximum number of tokens of prompt and answer; 4096 if omitted.
            threads: CPU threads; 0: llama.cpp's choice.
            embeddings: Whether to offer embeddings.
            start_seconds: Time limit for loading.

        Raises:
            SourceError: The file does not exist, or xllamacpp is not installed.
            EngineFailedError: llama.cpp cannot load the file; with the end of its log.
        """
        check_installed()
        if file is None or not file.is_file():
            raise SourceError(
                f"engine: llama_cpp needs a GGUF file, found {file}. Export one: tuneline export MODEL --gguf q8_0."
            )
        context = (max_length or DEFAULT_CONTEXT) + SPARE_TOKENS

        def server_command(port: int) -> list[str]:
            return command(
                ServerSettings(str(file), port, context, max_batch_size, threads=threads, embedding=embeddings)
            )

        child = ChildProcess(ChildSpec(cls.name, server_command, KEY_VARIABLE, start_seconds=start_seconds))
        engine = cls(child, tokenizer, context, embeddings=embeddings)
        engine._slots = max_batch_size
        return engine

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Yield the tokens of the answer; see `Engine.generate`."""
        limit = min(request.max_tokens, self.max_length - len(request.prompt_ids))
        body = completion_body(request, limit)
        self._running += 1
        try:
            async with aclosing(self._numbered_tokens(body, request)) as tokens:
                async for number, token in tokens:
                    if token.id in request.stop_ids:
                        token = token._replace(finish="stop")
                    elif token.finish is None and number >= limit:
                        token = token._replace(finish="length")
                    yield token
                    if token.finish is not None:
                        return
        finally:
            self._running -= 1

    async def _numbered_tokens(
        self, body: dict[str, Any], request: GenerationRequest
    ) -> AsyncGenerator[tuple[int, Token], None]:
        """Yield tokens with their numbers, from 1; one without text, which may be the stop token, waits for an event.

        The last token always has a finish reason.
        """
        held: Token | None = None
        count = 0
        async with aclosing(http_stream.stream(self.clients, self.child, "/completion", body)) as events:
            async for event in events:
                if event["stop"]:
                    last = held or Token(self._tokens.partial)
                    yield count, last._replace(finish="stop" if event["stop_type"] == "eos" else "length")
                    return
                if held is not None:
                    yield count, held
                    held = None
                *before, last = self._read_event(event, count, request.top_logprobs)
                count = event["tokens_predicted"]
                for number, token in enumerate(before, count - len(before)):
                    yield number, token
                if event["content"]:
                    yield count, last
                else:
                    held = last
        raise EngineFailedError("The engine llama_cpp closed the connection. Send the request again.")

    def _read_event(self, event: dict[str, Any], count: int, top_logprobs: int | None) -> list[Token]:
        """Return the tokens of an event, including those that llama.cpp omits."""
        ids = list(event["tokens"])
        missing = event["tokens_predicted"] - count - len(ids)
        probabilities = event.get("completion_probabilities") or []
        if missing > 0:
            text = bytes(probabilities[-1]["bytes"]) if probabilities else event["content"].encode()
            ids = self._tokens.find(text, missing + len(ids), ids[-1]) or ids
        tokens = [Token(index) for index in ids]
        if top_logprobs is not None and probabilities:
            last = probabilities[-1]
            top = tuple((item["id"], float(item["logprob"])) for item in last["top_logprobs"][:top_logprobs])
            tokens[-1] = Token(ids[-1], float(last["logprob"]), top)
        return tokens

    async def embed(self, ids: list[int]) -> list[float]:
        """Return the embedding of a text; see `Engine.embed`."""
        result = await http_stream.post(self.clients, self.child, "/embeddings", {"content": ids})
        return [float(value) for value in result[0]["embedding"][0]]

    async def score(self, ids: list[int]) -> float:
        """Reward models are not supported."""
        raise ValueError("The engine llama_cpp does not support reward models.")

    def current_load(self) -> EngineLoad:
        """Return the current load."""
        return EngineLoad(min(self._running, self._slots), max(0, self._running - self._slots))

    def is_healthy(self) -> bool:
        """Return whether the child process runs and has loaded the model."""
        return self.child.is_healthy()

    def close(self) -> None:
        """End the child process."""
        self.child.close()


def completion_body(request: GenerationRequest, limit: int) -> dict[str, Any]:
    """Return the body of a request to `/completion`.

    Raises:
        ValueError: A parameter is not supported, or the grammar is invalid.
    """
    sampling = request.sampling
    if request.adapter is not None:
        raise ValueError("The engine llama_cpp has no adapters: export the merged model.")
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise ValueError("The engine llama_cpp does not support presence_penalty and frequency_penalty.")
    body: dict[str, Any] = {
        "prompt": request.prompt_ids,
        "n_predict": limit + SPARE_TOKENS,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        "samplers": SAMPLERS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(request.prompt_ids) + limit if sampling.repetition_penalty != 1 else 0,
        "logit_bias": [[index, bias] for index, bias in sampling.logit_bias.items()],
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % 2**32
    if request.top_logprobs is not None:
        body["n_probs"] = max(1, request.top_logprobs)
    if request.grammar is not None:
        body["grammar"] = compile_grammar(request.grammar)
    return body


def compile_grammar(grammar: Grammar) -> str:
    """Return a grammar in Lark format for llama.cpp, which ignores an invalid one.

    Raises:
        ValueError: It is invalid.
    """
    if grammar.kind in ("json_object", "json_schema"):
        schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
        schema = {**schema, "x-guidance": {"whitespace_pattern": JSON_WHITE_SPACE}} if schema is not True else {}
        text = f"start: %json {json.dumps(schema)}"
    elif grammar.kind == "regex":
        text = "start: /" + grammar.text.replace("/", r"\/") + "/"
    else:
        text = grammar.text
    if error := llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(text)):
        raise ValueError(f"The {grammar.kind} is not supported: {error}")
    return text if text.startswith("%llguidance") else f"%llguidance {{}}\n{text}"
