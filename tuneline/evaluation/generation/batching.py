"""Choose how to batch prompts of different lengths, once per model, before the first answers.

Padding must not change a model's output. In transformers it does for some architectures: recurrent models read the
padding, and sparse attention may select padding once a prompt is longer than the number of selected tokens, which a
short probe does not show. Therefore two short prompts are answered one by one, padded, and from a batched cache. Only a
method whose logits agree with the unbatched ones is used.
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
"""From a cache without padding; padded on the left; one prompt at a time."""

PROBE, STEPS = (24, 9), 4
"""Number of tokens of the two probe prompts, and of their answers."""

TOLERANCE, HALF_PRECISION_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}, 0.2
"""Largest difference between logits, relative to their range. Rounding causes about 1e-6 in float32 and 1e-2 in
16 bits; padding that affects the output causes from 1e-2 to more than 1."""

Generation = tuple[list[list[int]], list[torch.Tensor]]

_CHOICES: WeakKeyDictionary[PreTrainedModel, Batching] = WeakKeyDictionary()


def choose_batching(model: PreTrainedModel, rows: Sequence[list[int]], pad: int) -> Batching:
    """Return how prompts can be batched for a model. Each model is probed once.

    Args:
        model: Causal language model.
        rows: Token ids of each prompt, the longest first; the beginnings of two of them are the probe.
        pad: Padding token id.
    """
    if model not in _CHOICES:
        _CHOICES[model] = _probe(model, [rows[0][: PROBE[0]], rows[-1][: min(PROBE[1], len(rows[0]) // 2)]], pad)
    return _CHOICES[model]


def _probe(model: PreTrainedModel, rows: list[list[int]], pad: int) -> Batching:
    if uses_sparse_attention(model):
        logger.warning("Prompts are answered one at a time: sparse attention of this architecture selects padding.")
        return "alone"
    alone = [_first_tokens(model, [row], None, pad) for row in rows]
    padded = _max_logit_diff(alone, _first_tokens(model, rows, None, pad))
    if not padded <= logit_tolerance(model):
        logger.warning(
            "Prompts are answered one at a time: in transformers, padding changes the output of this architecture "
            "(logits differ by %.2g of their range).",
            padded,
        )
        return "alone"
    cache = prefill.build_cache(model, rows, STEPS, pad)
    fits = cache is not None and _max_logit_diff(alone, _first_tokens(model, rows, cache, pad)) <= logit_tolerance(
        model
    )
    return "unpadded" if fits else "padded"


def uses_sparse_attention(model: PreTrainedModel) -> bool:
    """Return whether a model attends to selected tokens only, or has cache layers of its own class."""
    layers = DynamicCache(config=model.config).layers
    common = DynamicIndexedLayer.__module__
    return any(isinstance(layer, DynamicIndexedLayer) or type(layer).__module__ != common for layer in layers)


def logit_tolerance(model: PreTrainedModel) -> float:
    """Return the largest relative logit difference that rounding explains."""
    return TOLERANCE.get(model.dtype, HALF_PRECISION_TOLERANCE)


def _max_logit_diff(alone: list[Generation], together: Generation) -> float:
    """Return the largest relative logit difference, up to the first token that differs."""
    differences = []
    for row, (tokens, logits) in enumerate(alone):
        for step in range(STEPS):
            differences.append(max_relative_diff(logits[step][0], together[1][step][row]))
            if tokens[0][step] != together[0][row][step]:
                break
    return max(differences) if not any(map(isnan, differences)) else nan


@torch.inference_mode()
def _first_tokens(model: PreTrainedModel, rows: Sequence[list[int]], past: DynamicCache | None, pad: int) -> Generation:
    """Return the first tokens [rows, steps] of each answer, and their logits [steps, rows, vocabulary]."""
    ids, mask = padding.pad_left(rows, pad, model.device)
    output = model.generate(
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
    return output.sequences[:, ids.shape[1] :].tolist(), [step.float().cpu() for step in output.logits]
