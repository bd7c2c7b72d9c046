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
from tuneline.model.logit_distance import apart

logger = logging.getLogger(__name__)

Way = Literal["unpadded", "padded", "alone"]
"""From caches without padding; padded on the left; one prompt after the other."""

PROBE, STEPS = (24, 9), 4
"""Tokens of the two prompts, and of their answers."""

MOVED, ROUNDED = {torch.float32: 0.01, torch.float64: 0.01}, 0.2
"""How far logits may lie apart, as a share of their spread: in float32 rounding makes some millionths, in 16 bits some
hundredths; padding that is read some hundredths up to several whole."""

Begun = tuple[list[list[int]], list[torch.Tensor]]

_WAYS: WeakKeyDictionary[PreTrainedModel, Way] = WeakKeyDictionary()


def way(model: PreTrainedModel, rows: Sequence[list[int]], pad: int) -> Way:
    """Return how a model may answer prompts side by side; it is tried once for each model.

    Args:
        model: Causal language model.
        rows: Tokens of each prompt, the longest first; the beginnings of two are the trial.
        pad: Token to fill rows with.
    """
    if model not in _WAYS:
        _WAYS[model] = _tried(model, [rows[0][: PROBE[0]], rows[-1][: min(PROBE[1], len(rows[0]) // 2)]], pad)
    return _WAYS[model]


def _tried(model: PreTrainedModel, rows: list[list[int]], pad: int) -> Way:
    if chooses_sparsely(model):
        logger.warning("Prompts are answered one after the other: sparse attention chooses among padding, too.")
        return "alone"
    alone = [_begun(model, [row], None, pad) for row in rows]
    padded = _furthest(alone, _begun(model, rows, None, pad))
    if not padded <= allowed(model):
        logger.warning(
            "Prompts are answered one after the other: padding changes what this architecture says in transformers "
            "(logits move by %.2g of their spread).",
            padded,
        )
        return "alone"
    cache = prefill.cache_of(model, rows, STEPS, pad)
    fits = cache is not None and _furthest(alone, _begun(model, rows, cache, pad)) <= allowed(model)
    return "unpadded" if fits else "padded"


def chooses_sparsely(model: PreTrainedModel) -> bool:
    """Say whether a model attends to the best of all tokens only, or to what a layer of its own makes of them."""
    layers = DynamicCache(config=model.config).layers
    common = DynamicIndexedLayer.__module__
    return any(isinstance(layer, DynamicIndexedLayer) or type(layer).__module__ != common for layer in layers)


def allowed(model: PreTrainedModel) -> float:
    """Return how far logits may lie apart by rounding."""
    return MOVED.get(model.dtype, ROUNDED)


def _furthest(alone: list[Begun], together: Begun) -> float:
    """Return how far logits lie apart, as far as the same tokens were said."""
    found = []
    for row, (tokens, logits) in enumerate(alone):
        for step in range(STEPS):
            found.append(apart(logits[step][0], together[1][step][row]))
            if tokens[0][step] != together[0][row][step]:
                break
    return max(found) if not any(map(isnan, found)) else nan


@torch.inference_mode()
def _begun(model: PreTrainedModel, rows: Sequence[list[int]], past: DynamicCache | None, pad: int) -> Begun:
    """Return the first tokens [rows, steps] of each answer, and their logits [steps, rows, words]."""
    ids, mask = padding.on_the_left(rows, pad, model.device)
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
