"""Empty thinking blocks that a chat template inserts into answers without thinking.

Such a block is not part of the row, so it has no loss. Its text is derived from two renderings of one conversation,
with and without thinking: the block is the text around the thinking, if the template also writes it when there is no
thinking. An empty block that a row contains is trained.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.align.formats import chat
from tuneline.data.chat_template import render
from tuneline.data.schema import message
from tuneline.errors import TunelineError

THINKING_PLACEHOLDER, ANSWER_PLACEHOLDER = "\ue000thoughts\ue001", "\ue000answer\ue001"
QUESTION_MESSAGE = message("user", "question")
ANSWER_MESSAGE = message("assistant", ANSWER_PLACEHOLDER)
THINKING_FORMATS: tuple[dict[str, Any], ...] = (
    {"content": f"<think>\n{THINKING_PLACEHOLDER}\n</think>\n\n{ANSWER_PLACEHOLDER}"},
    dict.fromkeys(chat.THINKING_KEYS, THINKING_PLACEHOLDER),
)
"""Ways in which a message carries thinking: inside its content, or in separate fields."""


@dataclass(frozen=True)
class EmptyThinkingBlock:
    """An empty thinking block as a template writes it, followed by at most `margin` white space characters."""

    pattern: re.Pattern[str]
    margin: int

    def length(self, answer: str, content: str) -> int:
        """Return the length of the block at the start of an answer; 0 if there is no block or the row contains it."""
        block = self.pattern.match(answer)
        return block.end() if block and content.strip() in answer[block.end() :] else 0

    def length_with_white_space(self, answer: str, content: str) -> int:
        """Return the length of the block including the white space that the template writes after it."""
        length = self.length(answer, content)
        num_white = len(answer) - length - len(answer[length:].lstrip())
        return length + min(num_white, self.margin) if length else 0


def find_empty_block(tokenizer: PreTrainedTokenizerBase) -> EmptyThinkingBlock | None:
    """Return the empty thinking block that a tokenizer's chat template writes into answers without thinking."""
    plain = _render_answer(tokenizer, {}) if tokenizer.chat_template else None
    for thinking_format in THINKING_FORMATS if plain else ():
        answer = _render_answer(tokenizer, thinking_format) or ""
        before, placeholder, after = answer.partition(THINKING_PLACEHOLDER)
        tags = [before.strip(), after.partition(ANSWER_PLACEHOLDER)[0].strip()]
        if not placeholder or not any(tags):
            continue
        pattern = re.compile(r"\s*" + r"\s*".join(re.escape(tag) for tag in tags if tag))
        block = pattern.match(plain or "")
        if block:
            margin = str(plain)[block.end() :].partition(ANSWER_PLACEHOLDER)[0]
            return None if margin.strip() else EmptyThinkingBlock(pattern, len(margin))
    return None


def _render_answer(tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any]) -> str | None:
    """Render an answer after its generation prompt; None if the template refuses or rewrites it."""
    answer: Any = {**ANSWER_MESSAGE, **changes}
    try:
        prompt = render.apply_chat_template([QUESTION_MESSAGE], "", tokenizer, add_generation_prompt=True)
        text = render.apply_chat_template([QUESTION_MESSAGE, answer], "", tokenizer)
    except TunelineError:
        return None
    return text[len(prompt) :] if text.startswith(prompt) else None


def white_space_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], int]:
    """Return a function that counts the white space characters of a token; 0 for a token with any other character."""

    @lru_cache(maxsize=1 << 16)
    def count(token: int) -> int:
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return len(text) if text.isspace() else 0

    return count


def skip_white_space(ids: Sequence[int], start: int, margin: int, count: Callable[[int], int]) -> int:
    """Return the first token from `start` that is not covered by `margin` characters of white space."""
    while margin and start < len(ids) and 0 < count(ids[start]) <= margin:
        margin -= count(ids[start])
        start += 1
    return start
