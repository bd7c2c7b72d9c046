"""Request bodies of the generation routes. Unknown fields, wrong types and values out of range are errors."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20

Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]

NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "store": False,
}
"""Fields of OpenAI's API that clients send by habit. Only these values are accepted: they change nothing."""

NOT_OFFERED = frozenset(
    {
        *("audio", "function_call", "functions", "metadata", "modalities", "moderation", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "safety_identifier"),
        *("suffix", "verbosity", "web_search_options"),
    }
)
"""Other fields of OpenAI's API; null is accepted."""


class Strict(BaseModel):
    """A part of a request that rejects unknown fields and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(Strict):
    """A part of a message; the models are text models."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    """The function and the arguments of a call in an earlier answer."""

    name: Text
    arguments: str


class EarlierToolCall(Strict):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """A message of the conversation, as sent by users or returned by an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[EarlierToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            raise ValueError(f"a message of role {self.role!r} needs 'content'")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"only messages of role 'assistant' have 'tool_calls', and the role is {self.role!r}")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the message for a chat template, with text content."""
        message: dict[str, Any] = {"role": self.role, "content": self.text()}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        for name in ("name", "reasoning_content", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        return message

    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ToolFunction(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: ToolFunction


class ToolName(Strict):
    """The name inside a tool choice."""

    name: Text


class ToolChoice(Strict):
    """The tool that the model must call."""

    type: Literal["function"]
    function: ToolName


class JsonSchema(Strict):
    """The schema of a structured answer."""

    name: Text
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type 'json_schema' needs the field 'json_schema', and the other types have none")
        return self


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False


class Generation(Strict):
    """Fields that both generation routes share."""

    model: str = ""
    n: int | None = Field(None, ge=1)
    stop: Text | list[Text] | None = None
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_stop_strings(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS:
            raise ValueError(f"{len(stop)} stop strings, expected at most {MAX_STOP_STRINGS}")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for key in bias or {}:
            if not (key.isascii() and key.isdigit()):
                raise ValueError(f"the key {key!r} is not a token id")
        return bias

    @model_validator(mode="after")
    def _options_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Generation):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError(f"'tools' has a name twice: {', '.join(names)}")
        if self.tool_choice == "required" and not names:
            raise ValueError("'tool_choice' is 'required', and there are no 'tools'")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            name = self.tool_choice.function.name
            raise ValueError(f"'tool_choice' names {name!r}, and 'tools' has: {', '.join(names) or 'none'}")
        return self


class CompletionRequest(Generation):
    """Body of `/v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[Annotated[list[TokenId], Field(min_length=1)]]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @field_validator("prompt")
    @classmethod
    def _has_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and not prompt:
            raise ValueError("an empty list, expected at least one prompt")
        return prompt

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        return split_inputs(self.prompt)


def split_inputs(value: Any) -> list[Any]:
    """Return the texts or token lists of a field that accepts one or several of them."""
    is_single = isinstance(value, str) or (bool(value) and isinstance(value[0], int))
    return [value] if is_single else list(value)
