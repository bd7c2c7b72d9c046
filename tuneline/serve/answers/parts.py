"""Parts of an answer, as they become certain while tokens arrive."""

from dataclasses import dataclass
from typing import Literal

from tuneline.serve.engines.interface import Token

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call."""

    name: str
    arguments: str
    """Arguments as JSON text."""


@dataclass(frozen=True)
class Delta:
    """New parts of an answer."""

    content: str = ""
    reasoning: str = ""
    """Text of a thinking block, without its tags."""

    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = ()
    """Tokens of this delta, for log-probabilities and usage."""

    finish: FinishReason | None = None
    """Set in the last delta."""
