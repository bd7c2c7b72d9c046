r"""Transcripts: a whole chat as one text, as Anthropic's hh-rlhf writes it (Bai et al. 2022, arXiv:2204.05862).

Each turn begins with an empty line and its speaker: `\n\nHuman: ...\n\nAssistant: ...`.
"""

import re
from typing import Any, TypeGuard

from tuneline.data.schema import Message, message

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(value: Any) -> TypeGuard[str]:
    """Tell whether a value is a transcript; some copies lack the empty line at the very beginning."""
    if not isinstance(value, str):
        return False
    begins = value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    return begins or value.startswith(("\n\nHuman:", "\n\nAssistant:"))


def parse_transcript(text: str) -> list[Message]:
    """Read the turns of a transcript; the space around each belongs to the notation."""
    parts = _TURN.split(text)[1:]
    return [message(ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def parse_prompt(text: str) -> list[Message]:
    """Read a transcript that is to be answered: an empty `Assistant:` at its end is where the answer goes."""
    said = parse_transcript(text)
    return said[:-1] if said[-1]["role"] == "assistant" and not said[-1]["content"] else said
