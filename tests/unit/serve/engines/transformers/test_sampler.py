"""Sampling parameters mean what they mean in transformers."""

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tuneline.serve.engines.interface import GenerationRequest, Sampling
from tuneline.serve.engines.transformers import sampler
from tuneline.serve.engines.transformers.sampler import Sampler, top_logprobs

VOCABULARY = 60
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
PROMPT = [3, 4, 5, 5]
DRAWS = 4000


def draws(sampling, num=DRAWS):
    chooser = Sampler(GenerationRequest(PROMPT, 5, sampling))
    return Counter(chooser.choose(LOGITS) for _ in range(num))


@pytest.mark.parametrize(
    ("sampling", "processors"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        ({"top_k": 8, "top_p": 0.7}, [TopKLogitsWarper(8), TopPLogitsWarper(0.7)]),
        (
            {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)],
        ),
        ({"repetition_penalty": 1.8}, [RepetitionPenaltyLogitsProcessor(1.8)]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(sampling, processors):
    scores = LogitsProcessorList(processors)(torch.tensor([PROMPT]), LOGITS[None].clone())
    expected = scores.softmax(-1)[0]

    counts = draws(Sampling(seed=1, **sampling))

    assert {token for token in counts if expected[token] == 0} == set()
    for token in range(VOCABULARY):
        share, probability = counts[token] / DRAWS, float(expected[token])
        assert abs(share - probability) < 4.5 * (probability * (1 - probability) / DRAWS) ** 0.5 + 2 / DRAWS


def test_top_p_with_few_candidates_sorts_all_tokens(monkeypatch):
    monkeypatch.setattr(sampler, "NUM_CANDIDATES", 2)

    few = draws(Sampling(top_p=0.95, seed=3), 500)
    monkeypatch.undo()

    assert few == draws(Sampling(top_p=0.95, seed=3), 500)


def test_penalties_follow_the_openai_definition():
    """mu[j] -= c[j] * frequency_penalty + (c[j] > 0) * presence_penalty, over the answer."""
    best = int(LOGITS.argmax())
    second = int(LOGITS.topk(2).indices[1])
    gap = float(LOGITS[best] - LOGITS[second])
    greedy = {"temperature": 0}

    for sampling, times in (
        ({"presence_penalty": gap + 0.01}, 1),
        ({"frequency_penalty": (gap + 0.01) / 2}, 2),
    ):
        chooser = Sampler(GenerationRequest([*PROMPT, best], 5, Sampling(**greedy, **sampling)))
        for _ in range(times):
            assert chooser.choose(LOGITS) == best
            chooser.accept(best)
        assert chooser.choose(LOGITS) == second


def test_logit_bias_moves_tokens():
    assert set(draws(Sampling(logit_bias={7: 100.0}), 20)) == {7}
    assert int(LOGITS.argmax()) not in draws(Sampling(logit_bias={int(LOGITS.argmax()): -100.0}), 500)


def test_a_grammar_masks_tokens():
    class OnlyEven:
        accepted: list[int] = []  # noqa: RUF012

        def mask(self):
            return np.arange(VOCABULARY) % 2 == 0

        def accept(self, token):
            self.accepted.append(token)

    chooser = Sampler(GenerationRequest(PROMPT, 5, Sampling(), stop_ids=(2,)), OnlyEven())

    tokens = [chooser.choose(LOGITS) for _ in range(50)]
    for token in (4, 2):
        chooser.accept(token)

    assert all(token % 2 == 0 for token in tokens)
    assert OnlyEven.accepted == [4]


def test_logits_are_not_changed():
    before = LOGITS.clone()
    sampling = Sampling(top_p=0.5, top_k=9, min_p=0.1, repetition_penalty=2.0, logit_bias={1: 1.0}, seed=0)
    chooser = Sampler(GenerationRequest(PROMPT, 5, sampling))
    chooser.accept(chooser.choose(LOGITS))
    top_logprobs(LOGITS, 3, 5)

    assert torch.equal(LOGITS, before)


def test_logprobs_of_a_token():
    logprob, top = top_logprobs(LOGITS, 3, 2)

    assert logprob == pytest.approx(float(LOGITS.log_softmax(-1)[3]), abs=1e-6)
    assert [token for token, _ in top] == LOGITS.topk(2).indices.tolist()
    assert top_logprobs(LOGITS, 3, 0)[1] == ()
