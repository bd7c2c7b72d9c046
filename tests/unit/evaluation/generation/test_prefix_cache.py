"""Batches of prompts with a shared prefix give the logits of single prompts, for every architecture."""

import pytest
import torch

from tests import architectures
from tuneline.evaluation.generation import batching, prefix_cache
from tuneline.model.logit_distance import max_relative_diff

HEAD = [(i * 7919 + 11) % 250 + 3 for i in range(30)]
ROWS = [HEAD + [(i * 7919 + 11) % 250 + 3 for i in range(s, s + n)] for s, n in ((50, 20), (100, 12), (200, 5))]
EXPECTED_BATCHING = {
    "llama": "shared",
    "gpt2": "shared",
    "bloom": "shared",
    "mpt": "shared",
    "gemma3_text": "shared",
    "gpt_oss": "shared",
    "qwen3_next": "shared",
    "mamba": "padded",
    "minimax": "padded",
    "cpmant": "alone",
    "deepseek_v32": "alone",
}
"""Rotary, learned and relative positions, windows shorter than a prompt, recurrent and sparse attention."""


def check(name, expected=None):
    model = architectures.build(name).eval()
    with torch.no_grad():
        single_logits = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1].float() for row in ROWS])

    batched_logits = torch.empty_like(single_logits)
    for members, logits in prefix_cache.last_logits(model, ROWS, batch_tokens=60):
        batched_logits[members] = logits

    assert (
        max(max_relative_diff(*pair) for pair in zip(single_logits, batched_logits, strict=True))
        < batching.TOLERANCE[torch.float32]
    )
    assert expected is None or prefix_cache.choose_batching(model, ROWS) == expected


@pytest.mark.parametrize("name", EXPECTED_BATCHING)
def test_logits_with_a_shared_prefix_equal_single_ones(name):
    check(name, EXPECTED_BATCHING[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(architectures.GENERATING) - set(EXPECTED_BATCHING)))
def test_logits_with_a_shared_prefix_equal_single_ones_for_every_architecture(name):
    check(name)


@pytest.mark.parametrize(
    ("rows", "length"), [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1, 2]], 0), ([[5], [6]], 0)]
)
def test_a_common_prefix_excludes_the_last_token_of_each_row(rows, length):
    assert prefix_cache.common_prefix(rows) == length
