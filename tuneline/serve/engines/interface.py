"""Interface of inference engines: token ids in, tokens out.

The front renders prompts, finds stop strings, parses tool calls and thoughts, and writes responses. An engine sees
token ids and sampling parameters, so every engine answers the same prompt for the same request.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from tuneline.errors import TunelineError

FinishReason = Literal["stop", "length"]
"""Why an engine ended: a stop token, or the maximum number of tokens. Stop strings are found by the front."""


class EngineFailedError(TunelineError):
    """The engine died or does not respond; the request can be sent again."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, by the names of the OpenAI API and of transformers. The defaults change nothing."""

    temperature: float = 1.0
    """0 decodes greedily."""

    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""

    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """As in transformers (Keskar et al. 2019): over the prompt and the answer."""

    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Grammar:
    """A constraint on the text of an answer."""

    kind: Literal["json_object", "json_schema", "lark", "regex"]
    text: str = ""
    """JSON schema as JSON text, Lark grammar or regular expression; empty for `json_object`."""


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate."""

    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer; the stop token itself is the last token of the answer."""

    top_logprobs: int | None = None
    """Number of alternatives per token; 0: only the log-probability of the token; None: no log-probabilities."""

    grammar: Grammar | None = None
    adapter: str | None = None
    """Name of an adapter of the engine; None: the model without adapters, or with its merged adapters."""


class Token(NamedTuple):
    """A generated token."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability, from the unmodified logits; None if not requested."""

    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens at this position with their log-probabilities."""

    finish: FinishReason | None = None
    """Set for the last token of the answer."""


class Engine(Protocol):
    """A loaded model that generates tokens."""

    name: str
    """`transformers`, `vllm` or `llama_cpp`."""

    unsupported: frozenset[str]
    """Request fields that the engine cannot honor, by their API names; the front rejects them with status 400."""

    max_length: int
    """Maximum number of tokens of prompt and answer."""

    adapters: tuple[str, ...]
    """Names of the adapters that a request can select."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Yield the tokens of the answer. Closing the iterator frees the slot at once.

        Raises:
            EngineFailedError: The engine died.
            ValueError: The grammar is invalid.
        """
        ...

    async def embed(self, ids: list[int]) -> list[float]:
        """Return the embedding of a text: the normalized mean of the last hidden states [hidden_size]."""
        ...

    async def score(self, ids: list[int]) -> float:
        """Return the score of a reward model for a text."""
        ...

    def current_load(self) -> "EngineLoad":
        """Return the current load, for metrics and for the queue limit."""
        ...

    def is_healthy(self) -> bool:
        """Return whether the engine can answer."""
        ...

    def close(self) -> None:
        """Stop the engine and free its memory; running answers raise `EngineFailedError`."""
        ...


class EngineLoad(NamedTuple):
    """Requests inside an engine."""

    running: int
    waiting: int
