"""Next-token logits of prompts with a common prefix. The prefix is computed once (prefix caching).

The prefix is the longest common prefix of the *tokenized* prompts, so tokenization is the same as without sharing. Rows
are padded on the right, after the scored position: in a causal model this changes nothing, while padding between prefix
and suffix would shift the attention window. Each model is probed once, on two short rows, to verify that it continues
from a cache and ignores padding on the right.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel

from tuneline.evaluation.generation import batching
from tuneline.model.logit_distance import max_relative_diff

logger = logging.getLogger(__name__)

Batching = Literal["shared", "padded", "alone"]
"""From a cache of the common prefix; batched without a cache; one prompt at a time."""

PREFIX_TOKENS, SUFFIX_TOKENS = 16, (12, 5)
"""Number of tokens in the common prefix of the two probe rows, and in their suffixes."""

_CHOICES: WeakKeyDictionary[PreTrainedModel, Batching] = WeakKeyDictionary()


@torch.inference_mode()
def last_logits(
    model: PreTrainedModel, rows: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield row indices and their last logits [rows, vocabulary] in float32, batch by batch, the longest first.

    Args:
        model: Causal language model.
        rows: Token ids of each prompt.
        batch_tokens: Tokens per batch, without the common prefix.
    """
    method = choose_batching(model, rows)
    if method == "alone":
        for number, row in enumerate(rows):
            yield [number], _logits_of_one(model, row)
        return
    shared = common_prefix(rows) if method == "shared" else 0
    cache = _cache(model, rows[0][:shared]) if shared else None
    for members in batches([len(row) - shared for row in rows], batch_tokens):
        yield members, _logits_after_prefix(model, [rows[i][shared:] for i in members], cache)


def choose_batching(model: PreTrainedModel, rows: Sequence[list[int]]) -> Batching:
    """Return how rows can be batched for a model. Each model is probed once, on parts of its first rows."""
    if model not in _CHOICES:
        _CHOICES[model] = _probe(model, rows)
    return _CHOICES[model]


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return the length of the longest common prefix that leaves each row at least one token."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)
    differs = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return min(next(differs, len(low)), min(map(len, rows)) - 1)


def batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield row indices, the longest first, in batches of at most `batch_tokens` tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


@torch.inference_mode()
def _probe(model: PreTrainedModel, rows: Sequence[list[int]]) -> Batching:
    if _has_virtual_tokens(model) or batching.uses_sparse_attention(model):
        return "alone"
    head = rows[0][:PREFIX_TOKENS]
    probe_rows = [head + row[-length:] for row, length in zip((rows[0], rows[-1]), SUFFIX_TOKENS, strict=True)]
    alone = torch.cat([_logits_of_one(model, row) for row in probe_rows])
    methods: tuple[tuple[Batching, int], ...] = (("shared", len(head)), ("padded", 0))
    for method, shared in methods:
        try:
            cache = _cache(model, head) if shared else None
            logits = _logits_after_prefix(model, [row[shared:] for row in probe_rows], cache)
        except (
            AttributeError,
            IndexError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # the architecture has its own cache class
            logger.debug("%s: %s", method, error)
            continue
        if all(max_relative_diff(*pair) <= batching.logit_tolerance(model) for pair in zip(alone, logits, strict=True)):
            return method
    logger.warning("Prompts are scored one at a time: batching changes the output of this architecture.")
    return "alone"


def _has_virtual_tokens(model: PreTrainedModel) -> bool:
    """Return whether peft prepends virtual tokens to each input."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _logits_of_one(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """Return the last logits [1, vocabulary] of one prompt; peft handles positions of virtual tokens."""
    return model(input_ids=torch.tensor([row], device=model.device)).logits[:, -1].float()


def _cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _logits_after_prefix(model: PreTrainedModel, tails: list[list[int]], cache: DynamicCache | None) -> torch.Tensor:
    """Return the last logits [rows, vocabulary] of rows that continue from a cache of one row."""
    width = max(map(len, tails))
    ids = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=model.device)
    past = copy.deepcopy(cache)
    if past is not None:
        past.reorder_cache(torch.zeros(len(tails), dtype=torch.long, device=model.device))
    last = torch.tensor([len(tail) - 1 for tail in tails], device=model.device)
    with _head_at_last_positions(model, last):
        logits = model(input_ids=ids, past_key_values=past, use_cache=past is not None).logits
    positions = torch.zeros_like(last) if logits.shape[1] == 1 else last
    return logits[torch.arange(len(tails)), positions].float()


@contextmanager
def _head_at_last_positions(model: PreTrainedModel, last: torch.Tensor) -> Iterator[None]:
    """Compute the output head at one position per row; a model without an output head computes all."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def select_positions(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTD, *rest = inputs
        return hidden_BTD[torch.arange(len(last)), last][:, None], *rest

    hook = head.register_forward_pre_hook(select_positions)
    try:
        yield
    finally:
        hook.remove()
