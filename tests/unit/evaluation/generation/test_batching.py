"""Batches of prompts of different lengths give the answers of single prompts, for every architecture."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from tests import architectures
from tuneline.evaluation.generation import batching, prefill
from tuneline.model import padding

ROWS = [[(i * 7919 + 11) % 250 + 3 for i in range(s, s + n)] for s, n in ((0, 40), (50, 38), (100, 21), (200, 5))]
STEPS, PAD = 6, 0
EXPECTED_BATCHING = {
    "llama": "unpadded",
    "gpt2": "unpadded",
    "bloom": "unpadded",
    "mistral": "unpadded",
    "gemma3_text": "unpadded",
    "qwen3_moe": "unpadded",
    "qwen3_next": "padded",
    "mamba": "padded",
    "moshi": "padded",
    "recurrent_gemma": "alone",
    "rwkv": "alone",
    "deepseek_v32": "alone",
}
"""Rotary, learned and relative positions, sliding windows, experts, recurrent and sparse attention."""


def generate(model, rows, past=None):
    ids, mask = padding.pad_left(rows, PAD, model.device)
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD}
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=mask, past_key_values=past, **options)
    return output[:, ids.shape[1] :].tolist()


def generate_batched(model, rows, strategy):
    if strategy == "alone":
        return [generate(model, [row])[0] for row in rows]
    with torch.inference_mode():
        cache = prefill.build_cache(model, rows, STEPS, PAD)
    return generate(model, rows, cache if strategy == "unpadded" else None)


def check(name, expected=None):
    model = architectures.build(name).eval()
    expected_answers = [generate(model, [row])[0] for row in ROWS]

    strategy = batching.choose_batching(model, ROWS, PAD)

    assert generate_batched(model, ROWS, strategy) == expected_answers
    assert expected is None or strategy == expected


@pytest.mark.parametrize("name", EXPECTED_BATCHING)
def test_batched_answers_equal_single_ones(name):
    check(name, EXPECTED_BATCHING[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(architectures.GENERATING) - set(EXPECTED_BATCHING)))
def test_batched_answers_equal_single_ones_for_every_architecture(name):
    check(name)


def test_the_prefilled_cache_equals_right_aligned_single_caches(tiny_llama):
    cache = prefill.build_cache(tiny_llama, ROWS, STEPS, PAD)
    layer = cache.layers[0]

    for index, row in enumerate(ROWS):
        expected = tiny_llama(input_ids=torch.tensor([row[:-1]]), use_cache=True).past_key_values.layers[0]
        torch.testing.assert_close(layer.keys[index, :, -len(row) + 1 :], expected.keys[0])
        assert not layer.keys[index, :, : -len(row) + 1].any()
    assert cache.get_seq_length() == len(ROWS[0]) - 1


def test_a_preallocated_layer_equals_a_dynamic_one_and_is_not_copied(tiny_llama):
    cache = prefill.build_cache(tiny_llama, ROWS, STEPS, PAD)
    before = [(layer.keys.clone(), layer.keys.data_ptr()) for layer in cache.layers]
    dynamic = DynamicCache()
    for index, layer in enumerate(cache.layers):
        dynamic.update(layer.keys.clone(), layer.values.clone(), index)
    parts = torch.randn(2, len(ROWS), *before[0][0].shape[1:2], 3, before[0][0].shape[3])

    preallocated, expected = (layers.update(*parts, 0) for layers in (cache, dynamic))

    torch.testing.assert_close(preallocated, expected)
    assert cache.layers[0].keys.data_ptr() == before[0][1]


def test_groups_contain_adjacent_rows_of_similar_length():
    groups = list(prefill._group_by_length(ROWS))

    assert [row for group in groups for row in group] == ROWS
    assert [len(group) for group in groups] == [2, 1, 1]
    assert all(len(group[-1]) >= prefill.MIN_LENGTH_RATIO * len(group[0]) for group in groups)
    assert all(len(low[0]) < prefill.MIN_LENGTH_RATIO * len(high[0]) for high, low in pairwise(groups))


def test_a_prompt_of_one_token_disables_the_prefill(tiny_llama):
    assert prefill.build_cache(tiny_llama, [ROWS[0], [5]], STEPS, PAD) is None


def test_the_batching_of_a_model_is_probed_once(tiny_llama, monkeypatch):
    batching.choose_batching(tiny_llama, ROWS, PAD)
    monkeypatch.setattr(batching, "_probe", lambda *_: pytest.fail("probed again"))

    assert batching.choose_batching(tiny_llama, ROWS[::-1], PAD) == "unpadded"


@pytest.fixture
def tiny_llama():
    """A random Llama in float32."""
    return architectures.build("llama").eval()
