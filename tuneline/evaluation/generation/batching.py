"""How prompts of different lengths may be answered side by side by a model: found out before its first answers.

Padding must not change what a model says. In transformers it does for some architectures: recurrent ones that read the
padding, and sparse attention that chooses among it once a prompt is longer than what it chooses, which no short trial
shows. So two short prompts are answered alone, padded, and from caches laid side by side, and only a way that agrees
with being alone is taken.
"""

import logging
from collections.abc import Sequence
from math import isnan, nan
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicIndexedLayer

from tuneline.evaluation.generation import prefill
from tuneline.model import padding
from tuneline.model.logit_distance import max_relative_diff

logger = logging.getLogger(__name__)

Batching = Literal["unpadded", "padded", "alone"]
"""From caches without padding; padded on the left; one prompt after the other."""

PROBE, STEPS = (24, 9), 4
"""Tokens of the two prompts, and of their answers."""

TOLERANCE, HALF_PRECISION_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}, 0.2
"""How far logits may lie apart, as a share of their spread: in float32 rounding makes some millionths, in 16 bits some
hundredths; padding that is read some hundredths up to several whole."""

Generation = tuple[list[list[int]], list[torch.Tensor]]

_CHOICES: WeakKeyDictionary[PreTrainedModel, Batching] = WeakKeyDictionary()


def choose_batching(model: PreTrainedModel, rows: Sequence[list[int]], pad: int) -> Batching:
    """Return how a model may answer prompts side by side; it is tried once for each model.

    Args:
        model: Causal language model.
        rows: Tokens of each prompt, the longest first; the beginnings of two are the trial.
        pad: Token to fill rows with.
    """
    if model not in _CHOICES:
        _CHOICES[model] = _probe(model, [rows[0][: PROBE[0]], rows[-1][: min(PROBE[1], len(rows[0]) // 2)]], pad)
    return _CHOICES[model]


def _probe(model: PreTrainedModel, rows: list[list[int]], pad: int) -> Batching:
    if uses_sparse_attention(model):
        logger.warning("Prompts are answered one after the other: sparse attention chooses among padding, too.")
        return "alone"
    alone = [_first_tokens(model, [row], None, pad) for row in rows]
    padded = _max_logit_diff(alone, _first_tokens(model, rows, None, pad))
    if not padded <= logit_tolerance(model):
        logger.warning(
            "Prompts are answered one after the other: padding changes what this architecture says in transformers "
            "(logits move by %.2g of their spread).",
            padded,
        )
        return "alone"
    cache = prefill.build_cache(model, rows, STEPS, pad)
    fits = cache is not None and _max_logit_diff(alone, _first_tokens(model, rows, cache, pad)) <= logit_tolerance(
        model
    )
    return "unpadded" if fits else "padded"


def uses_sparse_attention(model: PreTrainedModel) -> bool:
    """Say whether a model attends to the best of all tokens only, or to what a layer of its own makes of them."""
    layers = DynamicCache(config=model.config).layers
    common = DynamicIndexedLayer.__module__
    return any(isinstance(layer, DynamicIndexedLayer) or type(layer).__module__ != common for layer in layers)


def logit_tolerance(model: PreTrainedModel) -> float:
    """Return how far logits may lie apart by rounding."""
    return TOLERANCE.get(model.dtype, HALF_PRECISION_TOLERANCE)


def _max_logit_diff(alone: list[Generation], together: Generation) -> float:
    """Return how far logits lie apart, as far as the same tokens were said."""
    found = []
    for row, (tokens, logits) in enumerate(alone):
        for step in range(STEPS):
            found.append(max_relative_diff(logits[step][0], together[1][step][row]))
            if tokens[0][step] != together[0][row][step]:
                break
    return max(found) if not any(map(isnan, found)) else nan


@torch.inference_mode()
def _first_tokens(model: PreTrainedModel, rows: Sequence[list[int]], past: DynamicCache | None, pad: int) -> Generation:
    """Return the first tokens [rows, steps] of each answer, and their logits [steps, rows, words]."""
    ids, mask = padding.pad_left(rows, pad, model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=past,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return made.sequences[:, ids.shape[1] :].tolist(), [step.float().cpu() for step in made.logits]
