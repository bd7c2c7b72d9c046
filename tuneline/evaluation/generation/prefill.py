"""Prefill the key-value cache of a batch of prompts without computing their padding.

Prompts of similar length are computed together. Their keys and values are then copied right-aligned into one cache that
has room for the answers, so the padding costs memory but no computation.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from tuneline.model import padding

MIN_LENGTH_RATIO = 0.9
"""Length of the shortest prompt in a group, relative to the longest."""


class PreallocatedLayer(DynamicLayer):
    """A cache layer with preallocated memory; the library's layer copies all keys and values at each step."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()
        self._room = keys, values
        self._filled = filled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [rows, heads, tokens, head_dim]; return all keys and values."""
        end = self._filled + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, self._filled : end] = states
        self._filled = end
        self._show()
        return self.keys, self.values

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self._filled] for room in self._room)


def has_little_padding(rows: Sequence[list[int]]) -> bool:
    """Return whether prompts, the longest first, have similar lengths, so that padding costs little."""
    return len(rows[-1]) >= MIN_LENGTH_RATIO * len(rows[0])


def build_cache(model: PreTrainedModel, rows: Sequence[list[int]], room: int, pad: int) -> DynamicCache | None:
    """Return the cache of all prompt tokens but the last, right-aligned in each row.

    Args:
        model: Causal language model.
        rows: Token ids of each prompt, the longest first.
        room: Number of tokens that will follow, including the last prompt token.
        pad: Padding token id.

    Returns:
        The cache; None for models whose cache is not one of keys and values per token, and for prompts of one token.
    """
    if len(rows[-1]) < 2 or not _is_token_cache(DynamicCache(config=model.config)):
        return None
    width, whole, start = len(rows[0]) - 1, None, 0
    for group in _group_by_length(rows):
        part = _compute_cache(model, [row[:-1] for row in group], pad)
        if part is None:
            return None
        whole = whole or _empty_cache(part, len(rows), width, room)
        for layer, filled in zip(whole.layers, part.layers, strict=True):
            if filled.is_initialized:
                _copy_right_aligned(filled, layer, start, width)
        start += len(group)
    return whole


def _group_by_length(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Yield groups of consecutive prompts that need little padding."""
    group: list[list[int]] = []
    for row in rows:
        if group and len(row) < MIN_LENGTH_RATIO * len(group[0]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _is_token_cache(cache: Cache) -> bool:
    """Return whether each cache layer holds keys and values of all or the last tokens, and nothing else."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


def _compute_cache(model: PreTrainedModel, rows: list[list[int]], pad: int) -> DynamicCache | None:
    """Compute the cache of rows, with the positions and masks that `generate` uses."""
    ids, mask = padding.pad_left(rows, pad, model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=pad,
        return_dict_in_generate=True,
    )
    cache = output.past_key_values
    return cache if _is_token_cache(cache) and cache.get_seq_length() == ids.shape[1] else None


def _empty_cache(like: DynamicCache, num_rows: int, width: int, room: int) -> DynamicCache:
    """Return a cache of zeros with `num_rows` rows and the layer types of `like`."""
    whole = DynamicCache()
    for layer in like.layers:
        if not layer.is_initialized:  # it shares the cache of another layer
            whole.layers.append(type(layer)(**_window_arguments(layer)))
            continue
        length = min(width, layer.sliding_window - 1) if layer.is_sliding else width + room
        keys, values = (
            torch.zeros((num_rows, each.shape[1], length, each.shape[3]), dtype=each.dtype, device=each.device)
            for each in (layer.keys, layer.values)
        )
        whole.layers.append(
            _sliding_layer(layer, keys, values, width) if layer.is_sliding else PreallocatedLayer(keys, values, width)
        )
    return whole


def _window_arguments(layer: DynamicLayer) -> dict[str, int]:
    return {"sliding_window": layer.sliding_window} if layer.is_sliding else {}


def _sliding_layer(
    like: DynamicLayer, keys: torch.Tensor, values: torch.Tensor, width: int
) -> DynamicSlidingWindowLayer:
    layer = DynamicSlidingWindowLayer(**_window_arguments(like))
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values, layer.cumulative_length = keys, values, width
    return layer


def _copy_right_aligned(part: DynamicLayer, whole: DynamicLayer, start: int, width: int) -> None:
    """Copy keys and values of a group, right-aligned, into its rows."""
    for into, states in ((whole.keys, part.keys), (whole.values, part.values)):
        length = min(states.shape[2], into.shape[2])
        into[start : start + states.shape[0], :, into.shape[2] - length :] = states[:, :, states.shape[2] - length :]
