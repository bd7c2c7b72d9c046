"""Rendering: messages -> the text that the tokenizer's own chat template makes of them, and which of it carries loss.

The template is the only truth; what the assistant said is found by rendering the conversation up to each of its
turns. A template that rewrites earlier turns (so that one rendering is no prefix of the next) is refused.
"""

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.schema import Message
from tuneline.errors import ProofError, SourceError


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, and where each trained turn begins and ends in it (characters)."""

    text: str
    trained: list[tuple[int, int]]


def render(messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase, train_on: str) -> Rendered:
    """Render a conversation.

    Args:
        messages: Turns in order.
        tools: JSON schemas of functions, or empty.
        tokenizer: Its chat template is used.
        train_on: `assistant` (all turns) or `last_assistant`.

    Raises:
        SourceError: The tokenizer has no chat template.
        ProofError: The template rewrites earlier turns.
    """
    turns = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn["train"] is not False]
    if train_on == "last_assistant":
        turns = turns[-1:]
    text = apply(messages, tools, tokenizer)
    spans = []
    for i in turns:
        head = apply(messages[:i], tools, tokenizer, add_generation_prompt=True)
        whole = apply(messages[: i + 1], tools, tokenizer)
        if not (whole.startswith(head) and text.startswith(whole)):
            raise ProofError(
                f"The chat template rewrites earlier turns, so what the model sees at turn {i + 1} is not what it "
                "would "
                "see when it answers. Use a template that only appends."
            )
        spans.append((len(head), len(whole)))
    return Rendered(text, spans)


def apply(
    messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    """Return the template's text.

    Raises:
        SourceError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise SourceError("The base model's tokenizer has no chat template. Take an instruction-tuned model.")
    return str(
        tokenizer.apply_chat_template(
            [_plain(message) for message in messages],
            tools=json.loads(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    )


def prompt(messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Split a conversation into what the model is given and its last answer."""
    return apply(messages[:-1], tools, tokenizer, add_generation_prompt=True), messages[-1]["content"]


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if message["tool_calls"]:
        plain["tool_calls"] = json.loads(message["tool_calls"])
    return plain
