"""Prompts of different lengths side by side: what each would be answered alone, in every architecture."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from tests import architectures
from tuneline.evaluation.generation import batching, prefill
from tuneline.model import padding

ROWS = [[(i * 7919 + 11) % 250 + 3 for i in range(s, s + n)] for s, n in ((0, 40), (50, 38), (100, 21), (200, 5))]
STEPS, PAD = 6, 0
FEW = {
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
"""Attention by rotation, by learned places, by distance, in windows, of both kinds, with experts; recurrent; sparse."""


def answered(model, rows, past=None):
    ids, mask = padding.pad_left(rows, PAD, model.device)
    told = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD}
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=mask, past_key_values=past, **told)
    return made[:, ids.shape[1] :].tolist()


def answered_together(model, rows, way):
    if way == "alone":
        return [answered(model, [row])[0] for row in rows]
    with torch.inference_mode():
        cache = prefill.build_cache(model, rows, STEPS, PAD)
    return answered(model, rows, cache if way == "unpadded" else None)


def check(name, expected=None):
    model = architectures.build(name).eval()
    alone = [answered(model, [row])[0] for row in ROWS]

    way = batching.choose_batching(model, ROWS, PAD)

    assert answered_together(model, ROWS, way) == alone
    assert expected is None or way == expected


@pytest.mark.parametrize("name", FEW)
def test_no_architecture_answers_otherwise_beside_others(name):
    check(name, FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(architectures.GENERATING) - set(FEW)))
def test_none_of_all_architectures_answers_otherwise_beside_others(name):
    check(name)


def test_a_cache_holds_what_each_prompt_alone_leaves_at_the_right_end(tiny_llama):
    cache = prefill.build_cache(tiny_llama, ROWS, STEPS, PAD)
    layer = cache.layers[0]

    for place, row in enumerate(ROWS):
        alone = tiny_llama(input_ids=torch.tensor([row[:-1]]), use_cache=True).past_key_values.layers[0]
        torch.testing.assert_close(layer.keys[place, :, -len(row) + 1 :], alone.keys[0])
        assert not layer.keys[place, :, : -len(row) + 1].any()
    assert cache.get_seq_length() == len(ROWS[0]) - 1


def test_a_layer_with_room_grows_as_the_librarys_does_and_copies_nothing(tiny_llama):
    cache = prefill.build_cache(tiny_llama, ROWS, STEPS, PAD)
    before = [(layer.keys.clone(), layer.keys.data_ptr()) for layer in cache.layers]
    grown = DynamicCache()
    for index, layer in enumerate(cache.layers):
        grown.update(layer.keys.clone(), layer.values.clone(), index)
    parts = torch.randn(2, len(ROWS), *before[0][0].shape[1:2], 3, before[0][0].shape[3])

    ours, theirs = (each.update(*parts, 0) for each in (cache, grown))

    torch.testing.assert_close(ours, theirs)
    assert cache.layers[0].keys.data_ptr() == before[0][1]


def test_groups_are_neighbours_that_need_little_padding():
    groups = list(prefill._group_by_length(ROWS))

    assert [row for group in groups for row in group] == ROWS
    assert [len(group) for group in groups] == [2, 1, 1]
    assert all(len(group[-1]) >= prefill.MIN_LENGTH_RATIO * len(group[0]) for group in groups)
    assert all(len(low[0]) < prefill.MIN_LENGTH_RATIO * len(high[0]) for high, low in pairwise(groups))


def test_a_prompt_of_one_token_has_nothing_to_be_read_before(tiny_llama):
    assert prefill.build_cache(tiny_llama, [ROWS[0], [5]], STEPS, PAD) is None


def test_a_model_is_tried_once(tiny_llama, monkeypatch):
    batching.choose_batching(tiny_llama, ROWS, PAD)
    monkeypatch.setattr(batching, "_probe", lambda *_: pytest.fail("tried again"))

    assert batching.choose_batching(tiny_llama, ROWS[::-1], PAD) == "unpadded"


@pytest.fixture
def tiny_llama():
    """A random Llama in float32."""
    return architectures.build("llama").eval()
