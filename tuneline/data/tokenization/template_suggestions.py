"""Ways out of a refusal by a chat template: settings that were tried on the refused conversation, and work.

Tried in this order: other values of `tokenize.rewritten_history`, the variables that the template itself reads as
`template_arguments`, both together, thoughts written into the answers, and the templates of the catalogue.
"""

import copy
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import NamedTuple

from jinja2 import meta
from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import jinja_ast, selection
from tuneline.data.schema import Message
from tuneline.data.tokenization.loss_mask import THINK_CLOSE_TAG
from tuneline.errors import TunelineError

HISTORY_POLICIES = ("refuse", "each_turn", "last_turn")
TEMPLATE_GLOBALS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", "bos_token")
) | {"eos_token", "unk_token", "pad_token", "range", "namespace", "dict", "loop"}
"""What a chat template is given anyway."""
SET_STATEMENT = re.compile(r"^\{%- set (\w+) = .* -%\}$", re.M)
"""How `template_arguments` stand at the beginning of a template."""

MAX_VARIABLES, MAX_TEMPLATES = 8, 3


class Attempt(NamedTuple):
    """Something to try: what to say of it, a tokenizer with its template and stop ids, and a conversation."""

    said: str
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    history: str
    messages: list[Message]

    def with_history(self, history: str) -> "Attempt":
        """Return the same under another `tokenize.rewritten_history`."""
        key = f"tokenize.rewritten_history: {history}"
        return self._replace(said=f"{self.said} with {key}" if self.said else key, history=history)


def suggest_settings(refused: Attempt, read: Callable[[Attempt], object]) -> str:
    """Say what to set so that a refused conversation can be trained.

    Args:
        refused: What was refused, with nothing said of it.
        read: Makes training rows, and raises what a run would raise.
    """
    others = [history for history in HISTORY_POLICIES[1:] if history != refused.history]
    plain = [*_switched(refused), *_with_thoughts(refused)]
    settings = [refused.with_history(other) for other in others] + [
        attempt if other is None else attempt.with_history(other) for attempt in plain for other in (None, *others)
    ]
    works = list(islice((attempt.said for attempt in settings if _works(attempt, read)), 1))
    named = list(islice((attempt.said for attempt in _templates(refused) if _works(attempt, read)), MAX_TEMPLATES))
    if named:
        works.append(f"template: {' or '.join(named)}")
    if works:
        return f"This row can be trained with {'; or with '.join(works)}."
    return (
        "No tokenize.rewritten_history, no variable of the template and no template of the catalogue that fits this "
        "tokenizer makes it trainable. Leave such rows out, or give a template of your own (template: my.jinja)."
    )


def _works(attempt: Attempt, read: Callable[[Attempt], object]) -> bool:
    try:
        read(attempt)
    except TunelineError:
        return False
    return True


def _switched(refused: Attempt) -> Iterator[Attempt]:
    """Yield the template with each of its variables set, those about thoughts first, off before on."""
    text = str(refused.tokenizer.chat_template)
    unset = meta.find_undeclared_variables(jinja_ast.parse_template(text)) - TEMPLATE_GLOBALS
    names = sorted({*unset, *SET_STATEMENT.findall(text)}, key=lambda name: ("think" not in name, name))
    for name, value in product(names[:MAX_VARIABLES], (False, True)):
        kept = re.sub(rf"^{{%- set {name} = .* -%}}\n", "", text, flags=re.M)
        changed = selection.prepend_arguments(kept, {name: value})
        said = f"template_arguments: {{{name}: {str(value).lower()}}}"
        if changed != text:
            yield refused._replace(said=said, tokenizer=_with_template(refused.tokenizer, changed))


def _with_thoughts(refused: Attempt) -> Iterator[Attempt]:
    """Yield the conversation with thoughts in answers that have none."""
    thinking = [
        {**turn, "content": f"<think>\nHm.\n{THINK_CLOSE_TAG}\n\n{turn['content']}"}
        if turn["role"] == "assistant" and not turn["tool_calls"] and THINK_CLOSE_TAG not in turn["content"]
        else turn
        for turn in refused.messages
    ]
    if thinking != refused.messages:
        yield refused._replace(said="thoughts in its answers (<think>...</think>)", messages=thinking)


def _templates(refused: Attempt) -> Iterator[Attempt]:
    """Yield the templates of the catalogue that the vocabulary can write; those first that end turns as the refused."""
    tokenizer, found = refused.tokenizer, list[Attempt]()
    for name in selection.compatible_templates(tokenizer):
        text = selection.read_template(name)
        stop = tokenizer.convert_tokens_to_ids(selection.find_turn_end_token(tokenizer, text))
        changed = _with_template(tokenizer, text)
        found.append(refused._replace(said=name, tokenizer=changed, stop_ids=frozenset((int(stop),))))
    yield from sorted(found, key=lambda attempt: attempt.stop_ids != refused.stop_ids)


def _with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedTokenizerBase:
    changed = copy.copy(tokenizer)
    changed.chat_template = text
    return changed
