"""Request bodies of the routes that do not generate: embeddings, scores, tokens."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tuneline.serve.api.schemas import Message, Strict, TokenId, Tool, split_inputs

Tokens = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(Strict):
    """Body of `/v1/embeddings`."""

    model: str = ""
    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _has_input(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and "" in value):
            raise ValueError("an empty text or list, expected at least one token per text")
        return value

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts as a list."""
        return split_inputs(self.input)


class ScoreRequest(Strict):
    """Body of `/v1/score`: one conversation in `messages`, or texts or conversations in `input`."""

    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    input: str | list[str] | list[Annotated[list[Message], Field(min_length=1)]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.messages is None) == (self.input is None):
            raise ValueError("Send either 'messages' (one conversation) or 'input' (texts or conversations)")
        if self.input is not None and (not self.input or "" in self.input):
            raise ValueError("'input' is empty or has an empty text; expected at least one token per text")
        return self

    @property
    def inputs(self) -> list[str | list[Message]]:
        """The texts and conversations as a list."""
        if self.messages is not None:
            return [self.messages]
        return [self.input] if isinstance(self.input, str) else list(self.input or [])


class ScoreEvaluationRequest(Strict):
    """Body of `/v1/score/evaluation`, as LlamaFactory defines it: rendered texts."""

    model: str = ""
    messages: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    max_length: int | None = Field(None, ge=1)
    """Longer texts are truncated at the end; null: the context length of the model."""


class TokenizeRequest(Strict):
    """Body of `/v1/tokenize`: a text, or messages that are rendered as `/v1/chat/completions` renders them."""

    model: str = ""
    text: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    """Add the special tokens that the tokenizer puts around a text; templates write their own."""

    return_token_strings: bool = False

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.messages is None) == (self.text is None):
            raise ValueError("Send either 'text' or 'messages'")
        if self.messages is None and (self.tools or self.chat_template_kwargs):
            raise ValueError("'tools' and 'chat_template_kwargs' need 'messages'")
        return self
