"""Settings of the HTTP API. This module imports nothing heavy, so the CLI builds settings before it loads a model."""

from dataclasses import dataclass, field

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ApiKey:
    """A bearer key. Its name appears in the access log; its secret appears nowhere."""

    name: str
    secret: str = field(repr=False)
    requests_per_minute: int | None = None
    """Maximum number of requests in any 60 seconds; None: no limit."""

    max_concurrent: int | None = None
    """Maximum number of requests at the same time; None: no limit."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or not self.secret:
            raise ValueError(f"An API key needs a printable name and a secret; its name is {self.name!r}. Set both.")
        for limit in ("requests_per_minute", "max_concurrent"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} of key {self.name!r} is {value}; expected at least 1. Raise or remove it.")


@dataclass(frozen=True)
class ApiSettings:
    """Limits, keys and logging of the API."""

    keys: tuple[ApiKey, ...] = ()
    """Every route but `/health` needs one of them; empty: no authentication."""

    allowed_hosts: tuple[str, ...] = ()
    """Values of the `Host` header beyond the loopback names, without port; `*` allows every host."""

    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may send requests, such as `https://app.example.org`; `*` allows every origin."""

    max_body_bytes: int = 8 * MEBIBYTE
    """Larger request bodies are rejected with status 413 while they arrive."""

    max_prompt_tokens: int | None = None
    """Maximum length of a prompt; None: the context length of the model."""

    max_tokens: int | None = None
    """Maximum length of an answer; None: what the prompt leaves of the context length."""

    max_choices: int = 128
    """Maximum number of answers per request: `n` times the number of prompts."""

    max_inputs: int = 2048
    """Maximum number of texts per request of `/v1/embeddings` and `/v1/score`."""

    max_waiting: int = 256
    """New requests are rejected with status 503 while more than this number wait inside the engine."""

    retry_after_seconds: int = 5
    """Value of `Retry-After` when the queue is full or an engine restarts."""

    max_request_seconds: float = 600.0
    """A request that takes longer ends with status 504, a stream with an error event."""

    read_timeout_seconds: float = 30.0
    """Time for the headers of a connection's first request, and longest pause between two parts of a body."""

    write_timeout_seconds: float = 30.0
    """Longest wait for a client that does not read its stream; then the connection is closed."""

    keep_alive_seconds: float = 15.0
    """Idle connections are closed after this time."""

    max_connections: int = 2048
    """More connections at the same time are answered with status 503."""

    max_header_bytes: int = 32 * 1024
    """Maximum size of the request line and the headers."""

    log_prompts: bool = False
    """Add the prompt to the access log."""

    def __post_init__(self) -> None:
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names) or len({key.secret for key in self.keys}) < len(names):
            raise ValueError(
                f"API keys need distinct names and secrets; the names are {names}. Rename or replace keys."
            )
