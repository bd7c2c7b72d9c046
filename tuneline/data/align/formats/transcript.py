r"""Transcripts: a whole chat as one text, in the notation of Anthropic's hh-rlhf (Bai et al. 2022, arXiv:2204.05862).

Each turn begins with an empty line and its speaker: `\n\nHuman: ...\n\nAssistant: ...`.
"""

import re
from typing import Any, TypeGuard

from tuneline.data.schema import Message, message

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(value: Any) -> TypeGuard[str]:
    """Return whether a value is a transcript; some copies lack the empty line at the beginning."""
    if not isinstance(value, str):
        return False
    begins_without_line = value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    return begins_without_line or value.startswith(("\n\nHuman:", "\n\nAssistant:"))


def parse_transcript(text: str) -> list[Message]:
    """Parse the turns of a transcript; the white space around each turn is part of the notation."""
    parts = _TURN.split(text)[1:]
    return [message(ROLES[name], turn.strip()) for name, turn in zip(parts[::2], parts[1::2], strict=True)]


def parse_prompt(text: str) -> list[Message]:
    """Parse a transcript that ends before the answer: an empty `Assistant:` at its end marks where the answer goes."""
    turns = parse_transcript(text)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
