"""Rendering: messages -> the text that the tokenizer's own chat template makes of them, and where its answers stand.

The template is the only truth. An answer is what follows the prompt that a server would send (the template rendered
up to that turn, with the generation header) in the rendering of the conversation up to and with that turn. A template
that rewrites earlier turns, as those of thinking models do, has no such place for them: it needs an explicit choice.
"""

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneline.data.schema import Message
from tuneline.errors import DataError, SourceError, TunelineError, VerificationError

_TEMPLATE_FAULTS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
)

OPEN_THINK_TAG_AT_END = re.compile(r"<think>\s*\Z")
LEADING_THINK_TAG = re.compile(r"\A\s*<think>\s*")
THINK_CLOSE_TAG = "</think>"

AnswerSelection = Literal["all", "last"]


class IncompatibleTemplateError(TunelineError):
    """A chat template does not fit a conversation; other settings may (see `template_suggestions`)."""


class RewrittenHistoryError(IncompatibleTemplateError, VerificationError):
    """The template shows an answer otherwise than behind the prompt for it."""


class TemplateRefusalError(IncompatibleTemplateError, DataError):
    """The template refuses a conversation, or leaves out what it says."""


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer in a rendered text: `text[start:end]` follows the generation header of message number `message`."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class RenderedConversation:
    """The text of a conversation, and its answers."""

    text: str
    turns: list[RenderedAnswer]


def render(
    messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase, turns: AnswerSelection = "all"
) -> RenderedConversation:
    """Render a conversation.

    Args:
        messages: Turns in order.
        tools: JSON schemas of functions, or empty.
        tokenizer: Its chat template is used.
        turns: Which answers are looked for: all of the assistant's, or the last one.

    Raises:
        SourceError: The tokenizer has no chat template.
        RewrittenHistoryError: The template rewrites an earlier turn.
        DataError: The template refuses the conversation.
    """
    text = apply_chat_template(messages, tools, tokenizer)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    found = []
    for i in answers[-1:] if turns == "last" else answers:
        head = apply_chat_template(messages[:i], tools, tokenizer, add_generation_prompt=True)
        whole = text if i == len(messages) - 1 else apply_chat_template(messages[: i + 1], tools, tokenizer)
        if whole.startswith(head) and text.startswith(whole):
            found.append(RenderedAnswer(i, len(head), len(whole)))
        elif turns == "last" and whole == text and OPEN_THINK_TAG_AT_END.search(head):
            return _answered(head, text, messages[i]["content"], i)
        else:
            raise RewrittenHistoryError(_rewritten(i + 1, head, whole, text))
    return RenderedConversation(text, found)


def _rewritten(number: int, head: str, whole: str, text: str) -> str:
    if whole.startswith(head) and not text.startswith(whole):
        return (
            f"The chat template rewrites earlier turns, so what the model is shown of turn {number} in a longer "
            "conversation is not what it answered."
        )
    same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(head, whole, strict=False)))
    alone = head[same:]
    return (
        f"The chat template does not write turn {number} behind the prompt that it makes for it, which has {alone!r} "
        "there, so the model would not answer from what it was trained on."
    )


def _answered(head: str, text: str, answer: str, i: int) -> RenderedConversation:
    """Put an answer with its thoughts behind a header that opens them; the template would leave them out.

    Raises:
        RewrittenHistoryError: The answer has no thoughts, or the template shows something else of it.
    """
    thoughts, closed, said = answer.partition(THINK_CLOSE_TAG)
    behind = text.rpartition(said.strip())[2] if said.strip() else ""
    if not closed or not behind:
        raise RewrittenHistoryError(
            f"The chat template opens a thinking block in front of answer {i + 1}, and that answer has none."
        )
    whole = head + LEADING_THINK_TAG.sub("", thoughts) + closed + said.rstrip() + behind
    return RenderedConversation(whole, [RenderedAnswer(i, len(head), len(whole))])


def apply_chat_template(
    messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    """Return the template's text.

    Raises:
        SourceError: The tokenizer has no chat template.
        DataError: The template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise SourceError(
            "The base model's tokenizer has no chat template. Name one in the recipe: template: chatml, for example."
        )
    try:
        return _rendered(messages, tools, tokenizer, add_generation_prompt, as_text=False)
    except _TEMPLATE_FAULTS as error:
        fault = error
    if any(message["tool_calls"] for message in messages):
        try:  # some templates write the arguments of a call as they are given, and need text
            return _rendered(messages, tools, tokenizer, add_generation_prompt, as_text=True)
        except _TEMPLATE_FAULTS as error:
            fault = error
    roles = ", ".join(message["role"] for message in messages)
    raise TemplateRefusalError(f"The chat template refuses a conversation of {roles}: {fault}.")


def _rendered(
    messages: list[Message],
    tools: str,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    *,
    as_text: bool,
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [to_template_message(message, arguments_as_text=as_text) for message in messages],
            tools=json.loads(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    )


def split_prompt(messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Split a conversation into what the model is given and its last answer."""
    return apply_chat_template(messages[:-1], tools, tokenizer, add_generation_prompt=True), messages[-1]["content"]


def to_template_message(message: Message, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """Return a message as templates expect it; the arguments of calls as objects, or as JSON text."""
    said: dict[str, Any] = {name: value for name, value in message.items() if name not in ("tool_calls", "train")}
    if message["tool_calls"]:
        said["tool_calls"] = json.loads(message["tool_calls"])
        for call in said["tool_calls"] if arguments_as_text else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return said
