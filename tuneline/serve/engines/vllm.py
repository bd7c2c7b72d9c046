"""The engine `vllm`: vLLM's OpenAI server in a child process, with a Python environment of its own.

vLLM's dependencies contradict ours, so it is never imported. Prompts are sent as token ids to `/v1/completions`; the
front keeps the key, because vLLM's own key protects only a part of its routes.
"""

import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline import identity, state
from tuneline.errors import SourceError
from tuneline.serve.engines import http_stream
from tuneline.serve.engines.child import ChildProcess, ChildSpec
from tuneline.serve.engines.interface import EngineFailedError, EngineLoad, GenerationRequest, Grammar, Token

MODULE = "vllm.entrypoints.openai.api_server"
KEY_VARIABLE = "VLLM_API_KEY"
SERVED_NAME = "model"
"""Name of the model in requests without an adapter."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM accepts as a maximum."""

CLEAN_ENVIRONMENT = ("env", "-u", "PYTHONPATH", "-u", "PYTHONHOME", "-u", "VIRTUAL_ENV")
"""Start of the command: our packages must not be visible in vLLM's environment."""

SET_UP = "python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm"
TOKEN_PREFIX = "token_id:"
"""Start of a token in log-probabilities with `return_tokens_as_token_ids`."""


class VllmEngine:
    """A model directory served by vLLM."""

    name = "vllm"

    def __init__(self, child: ChildProcess, *, max_length: int, max_batch_size: int, adapters: tuple[str, ...]) -> None:
        self.child = child
        self.max_length = max_length
        self.adapters = adapters
        self.unsupported = frozenset({"score", "embeddings"})
        self.version = ""
        """Version of vLLM."""

        self.clients = http_stream.Clients(child)
        self._running, self._max_batch_size = 0, max_batch_size

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        python: Path | str | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapters: Mapping[str, Path] | None = None,
        dtype: str = "auto",
        max_batch_size: int = 256,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        start_seconds: float = 1800.0,
    ) -> "VllmEngine":
        """Start the child process and load the model.

        Args:
            folder: Model directory.
            python: Python of the environment with vLLM.
            tokenizer: Not used: prompts are token ids.
            adapters: Name -> folder of a LoRA adapter of the model.
            dtype: Data type, as for `vllm serve --dtype`.
            max_batch_size: Number of requests that are decoded together; others wait.
            max_length: Maximum number of tokens of prompt and answer; by default that of the model.
            trust_remote_code: Execute Python code of the model.
            start_seconds: Time limit for loading.

        Raises:
            SourceError: The Python does not exist.
            EngineFailedError: vLLM does not start; with the end of its log.
        """
        path = find_python(python)
        adapters = dict(adapters or {})
        environment = _adapter_environment(folder, adapters) if adapters else {}
        options = ["--dtype", dtype, "--max-num-seqs", str(max_batch_size), "--generation-config", "vllm"]
        options += ["--max-model-len", str(max_length)] if max_length else []
        options += ["--trust-remote-code"] if trust_remote_code else []
        options += ["--enable-lora", "--max-lora-rank", str(_max_rank(adapters))] if adapters else []

        def server_command(port: int) -> list[str]:
            return [
                *CLEAN_ENVIRONMENT, str(path), "-m", MODULE, "--model", str(folder), "--served-model-name", SERVED_NAME,
                "--host", "127.0.0.1", "--port", str(port), *options,
                "--structured-outputs-config", '{"backend": "guidance"}',
            ]  # fmt: skip

        child = ChildProcess(
            ChildSpec(cls.name, server_command, KEY_VARIABLE, environment, start_seconds=start_seconds)
        )
        try:
            entries = child.get("/v1/models")["data"]
            length = next(int(entry["max_model_len"]) for entry in entries if entry["id"] == SERVED_NAME)
            engine = cls(child, max_length=length, max_batch_size=max_batch_size, adapters=tuple(adapters))
            engine.version = str(child.get("/version")["version"])
        except BaseException:
            child.close()
            raise
        return engine

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Yield the tokens of the answer; see `Engine.generate`."""
        body = completion_body(request)
        if request.adapter is not None and request.adapter not in self.adapters:
            raise ValueError(f"The engine vllm has no adapter {request.adapter!r}. Known: {', '.join(self.adapters)}.")
        self._running += 1
        try:
            async with aclosing(http_stream.stream(self.clients, self.child, "/v1/completions", body)) as events:
                async for event in events:
                    for choice in event["choices"]:
                        for token in read_choice(choice, request.top_logprobs):
                            yield token
                        if choice.get("finish_reason"):
                            return
            raise EngineFailedError("The engine vllm closed the connection. Send the request again.")
        finally:
            self._running -= 1

    async def embed(self, ids: list[int]) -> list[float]:
        """Embeddings are not supported."""
        raise ValueError("The engine vllm does not support embeddings here. Serve with the engine transformers.")

    async def score(self, ids: list[int]) -> float:
        """Reward models are not supported."""
        raise ValueError("The engine vllm does not support reward models here. Serve with the engine transformers.")

    def current_load(self) -> EngineLoad:
        """Return the current load."""
        waiting = max(0, self._running - self._max_batch_size)
        return EngineLoad(self._running - waiting, waiting)

    def is_healthy(self) -> bool:
        """Return whether the child process runs and has loaded the model."""
        return self.child.is_healthy()

    def close(self) -> None:
        """End the child process."""
        self.child.close()


def find_python(python: Path | str | None) -> Path:
    """Return the Python of the environment with vLLM.

    Raises:
        SourceError: It is not given, or not an executable file.
    """
    path = Path(python).expanduser() if python else None
    if path is None or not path.is_file() or not os.access(path, os.X_OK):
        raise SourceError(
            f"engine_python: found {str(python) if python else 'nothing'!r}, expected the Python of an environment "
            f"with vLLM. Create one: {SET_UP}; then set engine_python: ~/vllm/bin/python."
        )
    return path.absolute()


def completion_body(request: GenerationRequest) -> dict[str, Any]:
    """Return the body of a request to `/v1/completions`."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.adapter or SERVED_NAME,
        "prompt": request.prompt_ids,
        "max_tokens": request.max_tokens,
        "stream": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(request.stop_ids),
        "skip_special_tokens": False,
        "return_token_ids": True,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(index): bias for index, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.top_logprobs is not None:
        body |= {"logprobs": request.top_logprobs, "return_tokens_as_token_ids": True}
    if request.grammar is not None:
        body["structured_outputs"] = structured_outputs(request.grammar)
    return body


def structured_outputs(grammar: Grammar) -> dict[str, Any]:
    """Return a grammar as vLLM's `structured_outputs`; its backend `guidance` reads Lark grammars."""
    match grammar.kind:
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": json.loads(grammar.text)}
        case "regex":
            return {"regex": grammar.text}
        case "lark":
            return {"grammar": grammar.text}


def read_choice(choice: dict[str, Any], top_logprobs: int | None) -> list[Token]:
    """Return the tokens of an event, the last one with the finish reason."""
    ids, logprobs = choice.get("token_ids") or [], choice.get("logprobs")
    tokens = [Token(index) for index in ids]
    if top_logprobs is not None and logprobs:
        for position, token in enumerate(tokens):
            alternatives = (logprobs.get("top_logprobs") or [None] * len(tokens))[position] or {}
            top = sorted(((_token_id(name), float(value)) for name, value in alternatives.items()), key=lambda x: -x[1])
            value = float(logprobs["token_logprobs"][position])
            tokens[position] = token._replace(logprob=value, top=tuple(top[:top_logprobs]))
    reason = choice.get("finish_reason")
    if reason:
        if reason not in ("stop", "length") or not tokens:
            raise EngineFailedError(f"The engine vllm ended the answer with {reason!r} and {len(tokens)} tokens.")
        tokens[-1] = tokens[-1]._replace(finish=reason)
    return tokens


def _token_id(name: str) -> int:
    return int(name.removeprefix(TOKEN_PREFIX))


def _max_rank(adapters: Mapping[str, Path]) -> int:
    """Return the smallest maximum rank that vLLM accepts.

    Raises:
        SourceError: An adapter is not a LoRA, or its rank is too high.
    """
    ranks = [int(_adapter_config(path).get("r", 0)) for path in adapters.values()]
    fitting = [rank for rank in LORA_RANKS if rank >= max(ranks)]
    if not fitting or min(ranks) < 1:
        raise SourceError(f"engine: vllm supports LoRA adapters of rank 1 to {LORA_RANKS[-1]}, found {ranks}.")
    return fitting[0]


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise SourceError(f"engine: vllm: {folder} has no adapter_config.json, expected a PEFT adapter.")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _adapter_environment(model: Path, adapters: Mapping[str, Path]) -> dict[str, str]:
    """Return the environment of vLLM's resolver, which finds adapters by name in one folder.

    It accepts an adapter whose config names the served model, so the configs are copied with that name.
    """
    names = sorted((name, str(path)) for name, path in adapters.items())
    root = state.folder("vllm") / identity.digest([str(model), names])[:16]
    shutil.rmtree(root, ignore_errors=True)
    for name, path in adapters.items():
        target = root / name
        target.mkdir(parents=True)
        config = _adapter_config(path) | {"base_model_name_or_path": str(model)}
        for file in path.iterdir():
            if file.name != "adapter_config.json":
                (target / file.name).symlink_to(file.resolve())
        (target / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(root),
    }
