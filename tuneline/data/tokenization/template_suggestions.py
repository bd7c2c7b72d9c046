"""Suggestions for a conversation that a chat template refuses: settings that were tried on it and work.

Tried in this order: other values of `tokenize.rewritten_history`, the template's variables as `template_arguments`,
both together, thinking blocks added to the answers, and the built-in templates.
"""

import copy
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import NamedTuple

from jinja2 import meta
from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import jinja_ast, selection
from tuneline.data.chat_template.render import THINK_CLOSE_TAG
from tuneline.data.schema import Message
from tuneline.errors import TunelineError

HISTORY_POLICIES = ("refuse", "each_turn", "last_turn")
TEMPLATE_GLOBALS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", "bos_token")
) | {"eos_token", "unk_token", "pad_token", "range", "namespace", "dict", "loop"}
"""Variables that every chat template receives."""

SET_STATEMENT = re.compile(r"^\{%- set (\w+) = .* -%\}$", re.M)
"""A template argument at the beginning of a template."""

MAX_VARIABLES, MAX_TEMPLATES = 8, 3


class Attempt(NamedTuple):
    """Settings to try: their description, a tokenizer with its template and stop ids, and a conversation."""

    description: str
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    history: str
    messages: list[Message]

    def with_history(self, history: str) -> "Attempt":
        """Return the attempt with another value of `tokenize.rewritten_history`."""
        setting = f"tokenize.rewritten_history: {history}"
        description = f"{self.description} with {setting}" if self.description else setting
        return self._replace(description=description, history=history)


def suggest_settings(refused: Attempt, encode: Callable[[Attempt], object]) -> str:
    """Return a sentence that names the settings with which a refused conversation can be trained.

    Args:
        refused: The refused settings, with an empty description.
        encode: Makes training rows, and raises the errors of a run.
    """
    histories = [history for history in HISTORY_POLICIES[1:] if history != refused.history]
    changes = [*_with_variables(refused), *_with_thinking(refused)]
    attempts = [refused.with_history(history) for history in histories] + [
        attempt if history is None else attempt.with_history(history)
        for attempt in changes
        for history in (None, *histories)
    ]
    suggestions = list(islice((attempt.description for attempt in attempts if _works(attempt, encode)), 1))
    working_templates = (attempt.description for attempt in _with_templates(refused) if _works(attempt, encode))
    templates = list(islice(working_templates, MAX_TEMPLATES))
    if templates:
        suggestions.append(f"template: {' or '.join(templates)}")
    if suggestions:
        return f"This row can be trained with {'; or with '.join(suggestions)}."
    return (
        "No value of tokenize.rewritten_history, no variable of the template and no built-in template that is "
        "compatible with this tokenizer makes it trainable. Remove such rows, or use a custom template (template: "
        "my.jinja)."
    )


def _works(attempt: Attempt, encode: Callable[[Attempt], object]) -> bool:
    try:
        encode(attempt)
    except TunelineError:
        return False
    return True


def _with_variables(refused: Attempt) -> Iterator[Attempt]:
    """Yield the template with each of its variables set; variables about thinking first, false before true."""
    text = str(refused.tokenizer.chat_template)
    unset = meta.find_undeclared_variables(jinja_ast.parse_template(text)) - TEMPLATE_GLOBALS
    names = sorted({*unset, *SET_STATEMENT.findall(text)}, key=lambda name: ("think" not in name, name))
    for name, value in product(names[:MAX_VARIABLES], (False, True)):
        without_variable = re.sub(rf"^{{%- set {name} = .* -%}}\n", "", text, flags=re.M)
        changed = selection.prepend_arguments(without_variable, {name: value})
        description = f"template_arguments: {{{name}: {str(value).lower()}}}"
        if changed != text:
            tokenizer = _copy_with_template(refused.tokenizer, changed)
            yield refused._replace(description=description, tokenizer=tokenizer)


def _with_thinking(refused: Attempt) -> Iterator[Attempt]:
    """Yield the conversation with thinking blocks added to the answers that have none."""
    messages = [
        {**message, "content": f"<think>\nHm.\n{THINK_CLOSE_TAG}\n\n{message['content']}"}
        if message["role"] == "assistant" and not message["tool_calls"] and THINK_CLOSE_TAG not in message["content"]
        else message
        for message in refused.messages
    ]
    if messages != refused.messages:
        yield refused._replace(description="thinking blocks in its answers (<think>...</think>)", messages=messages)


def _with_templates(refused: Attempt) -> Iterator[Attempt]:
    """Yield the built-in templates that fit the vocabulary; those with the same end of turn first."""
    tokenizer, attempts = refused.tokenizer, list[Attempt]()
    for name in selection.compatible_templates(tokenizer):
        text = selection.read_template(name)
        stop = tokenizer.convert_tokens_to_ids(selection.find_turn_end_token(tokenizer, text))
        changed = _copy_with_template(tokenizer, text)
        attempts.append(refused._replace(description=name, tokenizer=changed, stop_ids=frozenset((int(stop),))))
    yield from sorted(attempts, key=lambda attempt: attempt.stop_ids != refused.stop_ids)


def _copy_with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedTokenizerBase:
    changed = copy.copy(tokenizer)
    changed.chat_template = text
    return changed
