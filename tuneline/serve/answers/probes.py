"""Probes of a chat template: what it writes around an answer, its thoughts and its tool calls."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.align.formats import chat
from tuneline.data.chat_template import render
from tuneline.data.chat_template.thinking import ANSWER_PLACEHOLDER, THINKING_PLACEHOLDER
from tuneline.data.schema import Message, message
from tuneline.errors import TunelineError

Call = tuple[str, dict[str, Any]]
"""Name and arguments of a tool call."""

QUESTION = message("user", "question")
KNOWN_THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
)
"""Tags that a template may mention without ever writing thoughts, because it removes them from earlier answers."""


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the chat template, or of all of them."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else "\n".join((template or {}).values())


def render_answer(
    tokenizer: PreTrainedTokenizerBase, answer: dict[str, Any], open_tag: str = ""
) -> tuple[str, str] | None:
    """Return what a template writes for an answer after its generation prompt, and the generation prompt.

    Args:
        tokenizer: The tokenizer with the template.
        answer: The message of the assistant.
        open_tag: Tag that opens a thinking block; the prompt may end with it, and the answer omit it.
    """
    messages: list[Any] = [QUESTION, answer]
    try:
        prompt = render.apply_chat_template([QUESTION], "", tokenizer, add_generation_prompt=True)
        text = render.apply_chat_template(messages, "", tokenizer)
    except TunelineError:
        return None
    if text.startswith(prompt):
        return text[len(prompt) :], prompt
    without_tag = prompt.rstrip().removesuffix(open_tag) if open_tag else prompt
    return (text[len(without_tag) :], prompt) if text.startswith(without_tag) else None


def find_thinking_tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the tags that open and close a thinking block, as the template shows them; None if it shows none."""
    template = template_text(tokenizer)
    known = next((pair for pair in KNOWN_THINKING_TAGS if pair[1] in template), None)
    if known or not template:
        return known
    answer = {**message("assistant", ANSWER_PLACEHOLDER), **dict.fromkeys(chat.THINKING_KEYS, THINKING_PLACEHOLDER)}
    rendered = render_answer(tokenizer, answer)
    before, thoughts, rest = (rendered[0] if rendered else "").partition(THINKING_PLACEHOLDER)
    between, content, _ = rest.partition(ANSWER_PLACEHOLDER)
    if not (thoughts and content and before.strip() and between.strip()):
        return None
    return before.strip(), between.strip()


def find_answer_header(tokenizer: PreTrainedTokenizerBase, thinking_tags: tuple[str, str] | None) -> str:
    """Return the text between the generation prompt and an answer without thoughts, such as the channel of gpt-oss."""
    rendered = render_answer(tokenizer, {**message("assistant", ANSWER_PLACEHOLDER)})
    header = (rendered[0] if rendered else "").partition(ANSWER_PLACEHOLDER)[0].strip()
    return "" if thinking_tags and thinking_tags[1] in header else header


def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that a template writes after an answer."""
    rendered = render_answer(tokenizer, {**message("assistant", ANSWER_PLACEHOLDER)})
    return (rendered[0] if rendered else "").partition(ANSWER_PLACEHOLDER)[2]


def render_calls(
    tokenizer: PreTrainedTokenizerBase, calls: Sequence[Call], thinking_tags: tuple[str, str] | None
) -> str | None:
    """Return the text of tool calls in an answer, without thinking block and end of turn; None if there is none."""
    functions = [{"type": "function", "function": {"name": name, "arguments": values}} for name, values in calls]
    answer: Message = message("assistant", "", json.dumps(functions))
    rendered = render_answer(tokenizer, {**answer}, thinking_tags[0] if thinking_tags else "")
    if rendered is None or not all(name in rendered[0] for name, _ in calls):
        return None
    text = rendered[0]
    head, tag, rest = text.partition(thinking_tags[1]) if thinking_tags else (text, "", "")
    if tag and calls[0][0] not in head:
        text = rest
    text = text.removesuffix(find_turn_end(tokenizer)).rstrip()
    return text.removesuffix(str(tokenizer.eos_token)).rstrip().lstrip("\n")
