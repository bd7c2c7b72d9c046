"""Thinking blocks that a chat template writes itself: an answer without thoughts gets an empty one from some templates.

Such a block is text that no row says, so it carries no loss. Which text it is follows from two renderings of one
conversation, with and without thoughts: what stands around the thoughts is the block, and it counts where the template
writes it without any, too. A row that writes an empty block itself is trained on it.
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


@dataclass(frozen=True)
class EmptyThinkingBlock:
    """An empty thinking block as a template writes it, with up to so many characters of white space behind it."""

    pattern: re.Pattern[str]
    margin: int

    def length(self, answer: str, content: str) -> int:
        """Return the length of the block at the beginning of an answer; 0 where there is none, or it is the row's."""
        block = self.pattern.match(answer)
        return block.end() if block and content.strip() in answer[block.end() :] else 0

    def length_with_white_space(self, answer: str, content: str) -> int:
        """Return the length of the block with the white space that the template writes behind it."""
        length = self.length(answer, content)
        white = len(answer) - length - len(answer[length:].lstrip())
        return length + min(white, self.margin) if length else 0


def find_empty_block(tokenizer: PreTrainedTokenizerBase) -> EmptyThinkingBlock | None:
    """Return the empty thinking block that a tokenizer's chat template writes into answers without thoughts."""
    plain = _answer(tokenizer, {}) if tokenizer.chat_template else None
    for spelling in THINKING_FORMATS if plain else ():
        before, thoughts, rest = (_answer(tokenizer, spelling) or "").partition(THINKING_PLACEHOLDER)
        around = [before.strip(), rest.partition(ANSWER_PLACEHOLDER)[0].strip()]
        if not thoughts or not any(around):
            continue
        pattern = re.compile(r"\s*" + r"\s*".join(re.escape(part) for part in around if part))
        block = pattern.match(plain or "")
        if block:
            behind = str(plain)[block.end() :].partition(ANSWER_PLACEHOLDER)[0]
            return None if behind.strip() else EmptyThinkingBlock(pattern, len(behind))
    return None


def _answer(tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any]) -> str | None:
    """Render an answer behind its header; nothing where the template refuses it or rewrites it."""
    try:
        header = render.apply_chat_template([QUESTION_MESSAGE], "", tokenizer, add_generation_prompt=True)
        whole = render.apply_chat_template([QUESTION_MESSAGE, {**ANSWER_MESSAGE, **changes}], "", tokenizer)  # type: ignore[typeddict-item]
    except TunelineError:
        return None
    return whole[len(header) :] if whole.startswith(header) else None


def white_space_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], int]:
    """Return what tells how many characters of white space a token is; 0 for one that is anything else."""

    @lru_cache(maxsize=1 << 16)
    def width(token: int) -> int:
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return len(text) if text.isspace() else 0

    return width


def skip_white_space(ids: Sequence[int], start: int, margin: int, width: Callable[[int], int]) -> int:
    """Return the first token from `start` on that holds more than the white space that a template puts there."""
    while margin and start < len(ids) and 0 < width(ids[start]) <= margin:
        margin -= width(ids[start])
        start += 1
    return start
