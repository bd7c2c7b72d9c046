"""The logits behind prompts that begin alike: what they share is computed once, and only the last position's is kept.

What is shared is the longest common beginning of the *tokenized* prompts, so that no token is cut otherwise than in a
prompt by itself. Rows are filled up on the right, behind the position that counts: in a causal model that changes
nothing, where padding between the beginning and the rest would move what a window of attention sees. Whether a model
goes on from a cache, and takes no notice of what stands behind, is tried once on two short rows.
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
"""From a cache of the common beginning; side by side without one; one prompt after the other."""

PREFIX_TOKENS, SUFFIX_TOKENS = 16, (12, 5)
"""Tokens that the two rows of a trial share, and those of each behind them."""

_CHOICES: WeakKeyDictionary[PreTrainedModel, Batching] = WeakKeyDictionary()


@torch.inference_mode()
def last_logits(
    model: PreTrainedModel, rows: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield numbers of rows and their last logits [rows, words] in float32, batch by batch, the longest first.

    Args:
        model: Causal language model.
        rows: Tokens of each prompt.
        batch_tokens: Tokens of a batch, without the shared ones.
    """
    way = choose_batching(model, rows)
    if way == "alone":
        for number, row in enumerate(rows):
            yield [number], _logits_of_one(model, row)
        return
    shared = common_prefix(rows) if way == "shared" else 0
    cache = _cache(model, rows[0][:shared]) if shared else None
    for members in batches([len(row) - shared for row in rows], batch_tokens):
        yield members, _logits_after_prefix(model, [rows[i][shared:] for i in members], cache)


def choose_batching(model: PreTrainedModel, rows: Sequence[list[int]]) -> Batching:
    """Return how a model may be asked; it is tried once for each model, on pieces of its first rows."""
    if model not in _CHOICES:
        _CHOICES[model] = _probe(model, rows)
    return _CHOICES[model]


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with, leaving each at least one to score."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)
    differs = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return min(next(differs, len(low)), min(map(len, rows)) - 1)


def batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of rows, the longest first, that make no larger batch than asked for."""
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
    trial = [head + row[-length:] for row, length in zip((rows[0], rows[-1]), SUFFIX_TOKENS, strict=True)]
    alone = torch.cat([_logits_of_one(model, row) for row in trial])
    ways: tuple[tuple[Batching, int], ...] = (("shared", len(head)), ("padded", 0))
    for way, shared in ways:
        try:
            cache = _cache(model, head) if shared else None
            found = _logits_after_prefix(model, [row[shared:] for row in trial], cache)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # a cache of its own
            logger.debug("%s: %s", way, error)
            continue
        if all(max_relative_diff(*pair) <= batching.logit_tolerance(model) for pair in zip(alone, found, strict=True)):
            return way
    logger.warning("Prompts are asked one after the other: beside others this architecture says something else.")
    return "alone"


def _has_virtual_tokens(model: PreTrainedModel) -> bool:
    """Tell whether peft puts tokens of its own in front of whatever a model is given."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _logits_of_one(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """Return the last logits [1, words] of one prompt; peft makes places and caches for virtual tokens itself."""
    return model(input_ids=torch.tensor([row], device=model.device)).logits[:, -1].float()


def _cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _logits_after_prefix(model: PreTrainedModel, tails: list[list[int]], cache: DynamicCache | None) -> torch.Tensor:
    """Return the last logits [rows, words] of rows that go on from a cache of one row."""
    width = max(map(len, tails))
    ids = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=model.device)
    past = copy.deepcopy(cache)
    if past is not None:
        past.reorder_cache(torch.zeros(len(tails), dtype=torch.long, device=model.device))
    last = torch.tensor([len(tail) - 1 for tail in tails], device=model.device)
    with _head_at_last_positions(model, last):
        logits = model(input_ids=ids, past_key_values=past, use_cache=past is not None).logits
    places = torch.zeros_like(last) if logits.shape[1] == 1 else last
    return logits[torch.arange(len(tails)), places].float()


@contextmanager
def _head_at_last_positions(model: PreTrainedModel, last: torch.Tensor) -> Iterator[None]:
    """Let the head of a model see one position of each row; a model without a head shows all."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def picked(_: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTD, *rest = given
        return hidden_BTD[torch.arange(len(last)), last][:, None], *rest

    hook = head.register_forward_pre_hook(picked)
    try:
        yield
    finally:
        hook.remove()
