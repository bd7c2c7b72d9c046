"""Prompts: messages of the OpenAI API to token ids, rendered and encoded as in training.

The text is that of the tokenizer's chat template with the generation prompt. It is split where training splits it: at
added tokens, and where earlier answers start.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import meta
from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import jinja_ast, render, unsupported_content
from tuneline.data.schema import Message
from tuneline.data.tokenizer.fast_encoder import Encoder
from tuneline.errors import DataError, SourceError, did_you_mean
from tuneline.serve.answers import messages as messages_module
from tuneline.serve.answers import probes
from tuneline.serve.answers.messages import PromptError

_OWN_VARIABLES = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    *("messages", "strftime_now", "raise_exception", "bos_token", "eos_token", "unk_token", "pad_token"),
    *("sep_token", "cls_token", "mask_token", "additional_special_tokens", "content", "message"),
}
"""Variables of a template that the renderer sets."""

_ENCODERS: "WeakKeyDictionary[PreTrainedTokenizerBase, Encoder]" = WeakKeyDictionary()
_UNSUPPORTED: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, list[str]]]" = WeakKeyDictionary()


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    splits_answers: bool = True,
) -> list[int]:
    """Return the token ids of the prompt of a conversation.

    Args:
        tokenizer: The tokenizer of the model.
        messages: Messages as in the OpenAI API.
        tools: Tools as in the OpenAI API.
        template_kwargs: Variables of the chat template (`chat_template_kwargs` of a request).
        splits_answers: Whether earlier answers are encoded separately from their prompts, as the model generated them;
            rows that train only on the last answer are encoded without these splits.

    Raises:
        PromptError: A message is malformed, the chat template refuses the conversation or omits a part of it, or a
            variable is not one of the template.
        SourceError: The tokenizer has no chat template.
    """
    turns = messages_module.read_messages(messages, tokenizer)
    schemas = messages_module.read_tools(tools)
    variables = dict(template_kwargs or {})
    _check_variables(tokenizer, variables)
    _check_tools(tokenizer, turns, schemas)
    text = _render(tokenizer, turns, schemas, variables)
    encoder = _encoder(tokenizer)
    starts = list[int]()
    if splits_answers and encoder.is_piecewise:
        starts = _answer_starts(tokenizer, turns, schemas, variables, text)
    return _encode(encoder, text, starts)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a raw text, with the start token if the tokenizer adds one, and without end token.

    Raises:
        PromptError: The text has no tokens.
    """
    ids, end = [int(i) for i in tokenizer(text)["input_ids"]], tokenizer.eos_token_id
    if end is not None and ids[-1:] == [end]:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids if list(plain[-1:]) == [end] else ids[:-1]
    if not ids:
        raise PromptError("prompt is empty, and this model has no start token. Send at least one character.")
    return ids


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[Message], schemas: str, variables: Mapping[str, Any]
) -> str:
    try:
        return render.apply_chat_template(turns, schemas, tokenizer, add_generation_prompt=True, variables=variables)
    except DataError as error:
        raise PromptError(str(error)) from None
    except SourceError as error:
        if tokenizer.chat_template:  # the limits of the sandbox
            raise PromptError(str(error)) from None
        raise SourceError("The tokenizer of this model has no chat template. Send a text to /v1/completions.") from None


def _check_variables(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
    if not variables:
        return
    known = template_variables(probes.template_text(tokenizer))
    for name in variables:
        if name not in known:
            listed = f"Its variables: {', '.join(sorted(known))}." if known else "It has none."
            raise PromptError(
                f"chat_template_kwargs.{name} is not a variable of this model's chat template, or the template sets "
                f"it itself.{did_you_mean(name, known)} {listed}"
            )
    try:
        json.dumps(variables)
    except (TypeError, ValueError) as error:
        raise PromptError(f"chat_template_kwargs must be JSON values: {error}.") from None


@lru_cache(maxsize=64)
def template_variables(template: str) -> frozenset[str]:
    """Return the variables of a template that a request can set."""
    try:
        return frozenset(meta.find_undeclared_variables(jinja_ast.parse_template(template))) - _OWN_VARIABLES
    except DataError:
        return frozenset()


def _check_tools(tokenizer: PreTrainedTokenizerBase, turns: list[Message], schemas: str) -> None:
    """Refuse tools and calls that the template silently omits."""
    if not schemas and not any(turn["tool_calls"] for turn in turns):
        return
    template = probes.template_text(tokenizer)
    cached = _UNSUPPORTED.get(tokenizer)
    if cached is None or cached[0] != template:
        cached = _UNSUPPORTED[tokenizer] = (template, unsupported_content.find_unsupported(tokenizer))
    for omitted, is_present in (
        (unsupported_content.TOOL_SCHEMAS, bool(schemas)),
        (unsupported_content.TOOL_CALLS, any(turn["tool_calls"] for turn in turns)),
    ):
        if is_present and omitted in cached[1]:
            raise PromptError(f"This model's chat template does not render {omitted}. Send the request without them.")


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    if tokenizer not in _ENCODERS:
        _ENCODERS[tokenizer] = Encoder(tokenizer, None, "tokenizers")
    return _ENCODERS[tokenizer]


def _encode(encoder: Encoder, text: str, starts: list[int]) -> list[int]:
    return [i for ids in encoder.encode_exact(encoder.split(text, starts)) for i in ids]


def _answer_starts(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[Message],
    schemas: str,
    variables: Mapping[str, Any],
    text: str,
) -> list[int]:
    """Return where earlier answers start, as far as their first token could join the last one of their prompt.

    A line break and a word never join, since the tokenizer splits text at added tokens and between them; the usual
    templates therefore need no further rendering.
    """
    header = (_encoder(tokenizer).pieces(text) or [""])[-1]
    if header in tokenizer.get_added_vocab():
        return []
    starts = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        if header.endswith("\n") and turn["content"][:1].strip():
            continue
        prompt = _render(tokenizer, turns[:i], schemas, variables) if i else ""
        if prompt and text.startswith(prompt):
            starts.append(len(prompt))
    return starts
