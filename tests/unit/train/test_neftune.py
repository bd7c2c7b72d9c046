"""NEFTune: noise of the size in the paper for each example of a packed row, only during training."""

import pytest
import torch

from tuneline.model.load import load_model
from tuneline.train.neftune import NeftuneNoise

ALPHA = 5.0
LENGTHS = [100, 4, 25]


def added(model, bounds):
    """Return the noise on the embeddings of a packed row, [tokens, width]."""
    ids = torch.arange(3, 3 + sum(LENGTHS))[None]
    plain = model.get_input_embeddings().weight[ids[0]]
    noise = NeftuneNoise(model, ALPHA)
    noise.set_example_bounds(bounds)
    noisy = model.get_input_embeddings()(ids)[0]
    noise.remove()
    return noisy - plain


@pytest.fixture
def bounds():
    return torch.tensor([0, *LENGTHS]).cumsum(0)


def test_noise_is_scaled_by_the_length_of_each_example(tiny_model, bounds):
    model = load_model(tiny_model).train()
    width = model.config.hidden_size

    parts = added(model, bounds).split(LENGTHS)

    for part, length in zip(parts, LENGTHS, strict=True):
        bound = ALPHA / (length * width) ** 0.5
        assert part.abs().max() <= bound * 1.0001
        assert part.abs().max() > bound * 0.9
        assert abs(float(part.mean())) < bound / 4


def test_noise_of_an_unpacked_row_equals_that_of_transformers(tiny_model):
    """The hook of transformers scales by the length of the row."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    model = load_model(tiny_model).train()
    embeddings, ids = model.get_input_embeddings(), torch.arange(3, 53)[None]
    plain = embeddings.weight[ids[0]]
    noise = NeftuneNoise(model, ALPHA)
    noise.set_example_bounds(torch.tensor([0, 50]))
    torch.manual_seed(0)
    added_noise = embeddings(ids)[0] - plain
    noise.remove()
    embeddings.neftune_noise_alpha = ALPHA
    torch.manual_seed(0)
    expected = neftune_post_forward_hook(embeddings, (ids,), embeddings(ids))[0] - plain

    assert float(added_noise.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.02)


def test_no_noise_outside_training_or_after_removal(tiny_model, bounds):
    assert added(load_model(tiny_model).eval(), bounds).abs().max() == 0
    model = load_model(tiny_model).train()
    added(model, bounds)
    ids = torch.tensor([[3, 4]])

    torch.testing.assert_close(model.get_input_embeddings()(ids)[0], model.get_input_embeddings().weight[ids[0]])
