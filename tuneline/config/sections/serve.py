"""Settings of a server: model, engine, address, limits and sampling defaults."""

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_TOKENS, Config, LocalPath, Name, TemplateArguments, TemplateName

LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")

ServedName = Annotated[str, Field(pattern=r"^[\w-][\w.@/+-]*$", max_length=256)]
"""A model name in requests."""

Text = Annotated[str, Field(min_length=1, max_length=4096)]


class ServeLimits(Config):
    """Limits of requests. A request that exceeds one is rejected with status 413, 400 or 429."""

    max_body_bytes: int = Field(4 << 20, ge=1024, le=1 << 30)
    """Maximum size of a request body."""

    max_prompt_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """Maximum number of tokens of a prompt. If omitted, the context length of the model."""

    max_new_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """Maximum number of tokens of an answer. If omitted, what the context length leaves after the prompt."""

    max_queue_length: int = Field(256, ge=0, le=10**6)
    """Maximum number of waiting requests. Further requests are rejected with status 429."""

    request_seconds: float = Field(600.0, gt=0, le=86_400)
    """Maximum duration of a request in seconds, including its time in the queue."""

    max_choices: int = Field(16, ge=1, le=1024)
    """Maximum number of answers per request (`n`), and of texts per request for embeddings and scores."""


class GenerationDefaults(Config):
    """Sampling parameters of requests that omit them.

    A parameter that is omitted here too has the value in the model's generation config, or no effect.
    """

    temperature: float | None = Field(None, ge=0, le=100)
    """Sampling temperature; 0 decodes greedily."""

    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: cumulative probability of the tokens to sample from."""

    top_k: int | None = Field(None, ge=0, le=10**6)
    """Number of most probable tokens to sample from; 0 keeps all."""

    min_p: float | None = Field(None, ge=0, le=1)
    """Minimum probability relative to the most probable token."""

    repetition_penalty: float | None = Field(None, gt=0, le=100)
    """Penalty for tokens of the prompt and the answer; 1 has no effect."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """Number of tokens after which an answer ends."""


class ServeConfig(Config):
    """Settings of `tuneline serve`: what is served, where, and with which limits."""

    model: str = Field(min_length=1, max_length=4096)
    """Model to serve: a registered model (`demo@champion`, `demo/7`, `models:/demo@champion`), a model or adapter
    folder, a checkpoint of a training, a GGUF file, a catalogue name, or a Hub repository (`owner/name`)."""

    base: str | None = Field(None, min_length=1, max_length=4096)
    """Base model of an adapter or a checkpoint, in the notation of `model`. If omitted, the one that it names."""

    adapters: dict[Name, Text] = Field(default_factory=dict)
    """Adapters by the model name that selects them in a request: an adapter folder, a checkpoint of a training, or a
    Hub repository. They share the weights of `model`."""

    served_names: list[ServedName] = Field(default_factory=list)
    """Additional model names for requests. They select the same version as `model`."""

    engine: Literal["transformers", "vllm", "llama_cpp"] = "transformers"
    """Inference engine: `transformers` runs in this process, `vllm` in a child process, `llama_cpp` reads GGUF."""

    engine_python: LocalPath | None = None
    """Python interpreter of the environment in which the engine is installed. Required for `vllm`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. `auto` is bfloat16 on an accelerator that supports it, else float32."""

    max_batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Maximum number of requests that the engine decodes at the same time."""

    max_length: int | None = Field(None, ge=8, le=MAX_TOKENS)
    """Maximum number of tokens of prompt and answer. If omitted, the context length of the model."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255)
    """Address to listen on. Any address other than loopback requires `keys`."""

    port: int = Field(8000, ge=0, le=65_535)
    """Port to listen on; 0 selects a free port."""

    keys: LocalPath | None = None
    """File with API keys, one `name: key` per line. The environment variable TUNELINE_API_KEY adds a key."""

    allowed_hosts: list[Text] = Field(default_factory=list)
    """Additional values of the `Host` header to accept, like `models.example.org`. Loopback is always accepted."""

    allowed_origins: list[Text] = Field(default_factory=list)
    """Values of the `Origin` header of web pages that may send requests. By default none."""

    log_prompts: bool = False
    """Write prompts and answers to the access log."""

    follow: float = Field(2.0, ge=0, le=86_400)
    """Seconds between two look-ups of the alias in the registry; 0 serves the first version until the server ends."""

    swap: Literal["beside", "restart"] = "beside"
    """What happens when the alias moves. `beside` loads the new version while the old one answers, and keeps the old
    one if the memory does not suffice for both. `restart` stops the old version first if it does not suffice."""

    drain_seconds: float = Field(600.0, ge=0, le=86_400)
    """Maximum number of seconds that the requests of an old version have to finish after a switch."""

    canary_prompts: LocalPath | None = None
    """File with prompts that a version must answer before it is served, one per line. If omitted, built-in prompts."""

    canary_tokens: int = Field(16, ge=2, le=4096)
    """Maximum number of tokens per canary answer."""

    shadow: float = Field(0.0, ge=0, le=1)
    """Share of requests that the challenger also answers, in the background. Both answers are written to
    `shadow/NAME.jsonl` in the state root; the challenger's answers are never sent."""

    shadow_bytes: int = Field(256 << 20, ge=0, le=1 << 40)
    """Maximum size of the file with the answers of the challenger. A full file ends the comparison."""

    trust_remote_code: bool = False
    """Execute Python code from the model's repository. Review it first."""

    allow_pickle: bool = False
    """Allow weights in pickle files (`pytorch_model.bin`), loaded with `weights_only`."""

    limits: ServeLimits = ServeLimits()
    """Limits of requests."""

    generation: GenerationDefaults = GenerationDefaults()
    """Sampling parameters of requests that omit them."""

    template: TemplateName = "auto"
    """Chat template of a model that is not registered. `auto` uses the model's own template, or that of its model
    family. Otherwise the name of a built-in template or the path of a Jinja file. A registered version or a checkpoint
    keeps the template of its training."""

    system: str | None = Field(None, max_length=1 << 20)
    """System message of conversations that have none."""

    chat_template_kwargs: TemplateArguments = Field(default_factory=dict)
    """Chat template variables of requests that omit them, like `enable_thinking: false`."""

    @property
    def is_local(self) -> bool:
        """Whether the server listens on a loopback address only."""
        return is_loopback(self.host)

    @field_validator("host")
    @classmethod
    def _host_is_an_address(cls, host: str) -> str:
        if "://" in host or "/" in host or any(character.isspace() for character in host):
            raise ValueError(f"{host!r} is not a host name or an address. Set a value like 127.0.0.1, without a port.")
        return host

    @model_validator(mode="after")
    def _vllm_has_an_interpreter(self) -> "ServeConfig":
        if self.engine == "vllm" and self.engine_python is None:
            raise ValueError(
                "engine_python: required for engine vllm, which runs in an environment of its own. Set the path of "
                "its Python interpreter, like vllm-env/bin/python."
            )
        return self

    @model_validator(mode="after")
    def _llama_cpp_has_no_adapters(self) -> "ServeConfig":
        if self.engine == "llama_cpp" and self.adapters:
            raise ValueError(
                "adapters: not supported by engine llama_cpp. Merge the adapter into its base model, or set engine: "
                "transformers."
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether an address or host name is only reachable from this machine."""
    if host.lower().rstrip(".") in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
