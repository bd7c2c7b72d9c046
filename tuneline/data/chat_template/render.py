"""Rendering: apply the tokenizer's chat template to messages, and locate the answers in the text.

The chat template is authoritative. An answer is the text that follows the prompt that a server would send (the template
rendered up to that turn, with the generation prompt) in the rendering of the conversation up to and including that
turn. A template that rewrites earlier turns, as those of thinking models do, has no such position for them; it requires
an explicit setting.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneline.data.schema import Message
from tuneline.errors import DataError, SourceError, TunelineError, VerificationError

_TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
)

OPEN_THINK_TAG_AT_END = re.compile(r"<think>\s*\Z")
LEADING_THINK_TAG = re.compile(r"\A\s*<think>\s*")
THINK_CLOSE_TAG = "</think>"

AnswerSelection = Literal["all", "last"]
"""Which answers are located: all answers of the assistant, or the last one."""


class IncompatibleTemplateError(TunelineError):
    """A chat template does not support a conversation; other settings may (see `template_suggestions`)."""


class RewrittenHistoryError(IncompatibleTemplateError, VerificationError):
    """The template renders an answer differently than after its prompt."""


class TemplateRefusalError(IncompatibleTemplateError, DataError):
    """The template refuses a conversation, or omits part of it."""


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer in a rendered text: `text[start:end]` follows the generation prompt; `message` is its index."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class RenderedConversation:
    """The text of a conversation, and its answers."""

    text: str
    answers: list[RenderedAnswer]


def render(
    messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase, selection: AnswerSelection = "all"
) -> RenderedConversation:
    """Render a conversation and locate its answers.

    Args:
        messages: Messages in order.
        tools: JSON schemas of the tools as JSON text, or empty.
        tokenizer: The tokenizer whose chat template is used.
        selection: Which answers to locate: all answers of the assistant, or the last one.

    Raises:
        SourceError: The tokenizer has no chat template.
        RewrittenHistoryError: The template rewrites an earlier turn.
        DataError: The template refuses the conversation.
    """
    text = apply_chat_template(messages, tools, tokenizer)
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    answers = []
    for i in indices[-1:] if selection == "last" else indices:
        prompt = apply_chat_template(messages[:i], tools, tokenizer, add_generation_prompt=True)
        with_answer = text if i == len(messages) - 1 else apply_chat_template(messages[: i + 1], tools, tokenizer)
        if with_answer.startswith(prompt) and text.startswith(with_answer):
            answers.append(RenderedAnswer(i, len(prompt), len(with_answer)))
        elif selection == "last" and with_answer == text and OPEN_THINK_TAG_AT_END.search(prompt):
            return _render_after_think_tag(prompt, text, messages[i]["content"], i)
        else:
            raise RewrittenHistoryError(_rewritten_message(i + 1, prompt, with_answer, text))
    return RenderedConversation(text, answers)


def _rewritten_message(number: int, prompt: str, with_answer: str, text: str) -> str:
    if with_answer.startswith(prompt) and not text.startswith(with_answer):
        return (
            f"The chat template rewrites earlier turns: in a longer conversation, turn {number} differs from the text "
            "that the model generated."
        )
    num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, with_answer, strict=False)))
    return (
        f"The chat template does not write turn {number} directly after its generation prompt, which ends with "
        f"{prompt[num_equal:]!r}, so the prompt at inference would differ from the training data."
    )


def _render_after_think_tag(prompt: str, text: str, answer: str, i: int) -> RenderedConversation:
    """Append an answer with its thinking block to a prompt that opens the block; the template would omit the block.

    Raises:
        RewrittenHistoryError: The answer has no thinking block, or the template renders other content.
    """
    thinking, tag, content = answer.partition(THINK_CLOSE_TAG)
    suffix = text.rpartition(content.strip())[2] if content.strip() else ""
    if not tag or not suffix:
        raise RewrittenHistoryError(
            f"The chat template opens a thinking block before answer {i + 1}, and that answer has no thinking block."
        )
    with_answer = prompt + LEADING_THINK_TAG.sub("", thinking) + tag + content.rstrip() + suffix
    return RenderedConversation(with_answer, [RenderedAnswer(i, len(prompt), len(with_answer))])


def apply_chat_template(
    messages: list[Message],
    tools: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return the text that the chat template renders.

    Args:
        messages: Messages in order; other keys than those of `Message` are passed to the template.
        tools: JSON schemas of the tools as JSON text, or empty.
        tokenizer: The tokenizer whose chat template is used.
        add_generation_prompt: Whether the text ends with the header of an answer.
        variables: Variables of the template, such as `enable_thinking`.

    Raises:
        SourceError: The tokenizer has no chat template.
        DataError: The template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise SourceError(
            "The base model's tokenizer has no chat template. Set one in the recipe, for example template: chatml."
        )
    try:
        return _apply(messages, tools, tokenizer, add_generation_prompt, variables or {}, arguments_as_text=False)
    except _TEMPLATE_ERRORS as error:
        fault = error
    if any(message["tool_calls"] for message in messages):
        try:  # some templates write the arguments of a tool call unchanged, and require text
            return _apply(messages, tools, tokenizer, add_generation_prompt, variables or {}, arguments_as_text=True)
        except _TEMPLATE_ERRORS as error:
            fault = error
    roles = ", ".join(message["role"] for message in messages)
    raise TemplateRefusalError(f"The chat template refuses a conversation of {roles}: {fault}.")


def _apply(
    messages: list[Message],
    tools: str,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    *,
    arguments_as_text: bool,
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [to_template_message(message, arguments_as_text=arguments_as_text) for message in messages],
            tools=json.loads(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )
    )


def split_prompt(messages: list[Message], tools: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Split a conversation into the prompt with generation prompt, and the content of the last answer."""
    return apply_chat_template(messages[:-1], tools, tokenizer, add_generation_prompt=True), messages[-1]["content"]


def to_template_message(message: Message, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """Return a message in the form that chat templates expect; arguments of tool calls are objects or JSON text."""
    converted: dict[str, Any] = {name: value for name, value in message.items() if name not in ("tool_calls", "train")}
    if message["tool_calls"]:
        converted["tool_calls"] = json.loads(message["tool_calls"])
        for call in converted["tool_calls"] if arguments_as_text else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return converted
