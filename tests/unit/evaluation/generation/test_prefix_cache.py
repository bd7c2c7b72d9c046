"""Prompts that begin alike, side by side: the logits of each alone, in every architecture."""

import pytest
import torch

from tests import architectures
from tuneline.evaluation.generation import batching, prefix_cache
from tuneline.model.logit_distance import max_relative_diff

HEAD = [(i * 7919 + 11) % 250 + 3 for i in range(30)]
ROWS = [HEAD + [(i * 7919 + 11) % 250 + 3 for i in range(s, s + n)] for s, n in ((50, 20), (100, 12), (200, 5))]
FEW = {
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
"""Places by rotation, by table, by distance; windows shorter than a prompt; recurrent; sparse."""


def check(name, expected=None):
    model = architectures.build(name).eval()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1].float() for row in ROWS])

    found = torch.empty_like(alone)
    for members, logits in prefix_cache.last_logits(model, ROWS, batch_tokens=60):
        found[members] = logits

    assert max(max_relative_diff(*pair) for pair in zip(alone, found, strict=True)) < batching.TOLERANCE[torch.float32]
    assert expected is None or prefix_cache.choose_batching(model, ROWS) == expected


@pytest.mark.parametrize("name", FEW)
def test_no_architecture_says_something_else_beside_others(name):
    check(name, FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(architectures.GENERATING) - set(FEW)))
def test_none_of_all_architectures_says_something_else_beside_others(name):
    check(name)


@pytest.mark.parametrize(
    ("rows", "length"), [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1, 2]], 0), ([[5], [6]], 0)]
)
def test_a_common_prefix_leaves_each_row_a_token_to_score(rows, length):
    assert prefix_cache.common_prefix(rows) == length
