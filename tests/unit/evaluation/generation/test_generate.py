"""Greedy and sampled answers do not depend on the other prompts of a batch."""

import pytest
import torch
from transformers import AutoTokenizer

from tests import tiny
from tuneline.evaluation.generation import generate
from tuneline.model.load import load_model

PROMPTS = [
    f"<|im_start|>user\nWhat is {'one and ' * i}{i}?<|im_end|>\n<|im_start|>assistant\n" for i in (3, 0, 9, 1, 1, 14, 5)
]
LENGTH = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model in float32 whose weights are large enough for its answers to differ."""
    loaded = load_model(tiny.build_model(tmp_path_factory.mktemp("generate"), seed=1)).eval()
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.mul_(6 if weight.dim() == 2 else 1)
    return loaded


@pytest.fixture
def tokenizer(tiny_model):
    """A new instance of the tiny model's tokenizer."""
    return AutoTokenizer.from_pretrained(tiny_model)


def decode_single(model, tokenizer, prompt, length=LENGTH):
    """Decode greedily one token at a time, without cache or padding; return the ids."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    generated = []
    for _ in range(length):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + generated]), use_cache=False).logits
        generated.append(int(logits[0, -1].argmax()))
        if generated[-1] == tokenizer.eos_token_id:
            break
    return generated


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_answer_does_not_depend_on_the_batch(model, tokenizer, batch_size):
    expected = [text(tokenizer, decode_single(model, tokenizer, prompt)) for prompt in PROMPTS]

    answers = generate.generate_answers(model, tokenizer, PROMPTS, max_new_tokens=LENGTH, batch_size=batch_size)

    assert answers == expected


def test_answers_are_in_the_order_of_the_prompts(model, tokenizer):
    forward = generate.generate_answers(model, tokenizer, PROMPTS, max_new_tokens=LENGTH, batch_size=3)
    backward = generate.generate_answers(model, tokenizer, PROMPTS[::-1], max_new_tokens=LENGTH, batch_size=3)

    assert backward == forward[::-1]
    assert len(set(forward)) == len(set(PROMPTS)), "equal answers would hide a wrong order"


@pytest.mark.parametrize("length", [1, 4])
def test_an_answer_is_truncated_at_max_new_tokens(model, tokenizer, length):
    expected = [text(tokenizer, decode_single(model, tokenizer, prompt)[:length]) for prompt in PROMPTS]

    assert generate.generate_answers(model, tokenizer, PROMPTS, max_new_tokens=length, batch_size=4) == expected


def test_an_answer_ends_at_its_stop_token_and_others_continue(model, tokenizer):
    full_answers = [decode_single(model, tokenizer, prompt) for prompt in PROMPTS]
    tokenizer.eos_token_id = full_answers[0][4]
    expected = [decode_single(model, tokenizer, prompt) for prompt in PROMPTS]

    answers = generate.generate_answers(model, tokenizer, PROMPTS, max_new_tokens=LENGTH, batch_size=8)

    assert answers == [text(tokenizer, ids) for ids in expected]
    assert len(expected[0]) <= 5 < max(map(len, expected))


def test_an_empty_list_of_prompts_gives_no_answers(model, tokenizer):
    assert generate.generate_answers(model, tokenizer, [], max_new_tokens=4, batch_size=8) == []


def sample(model, tokenizer, seed, batch_size):
    draw = generate.SamplingConfig(temperature=1.0, seed=seed)
    return {
        answer.index: answer.text
        for answer in generate.stream_answers(model, tokenizer, PROMPTS, LENGTH, batch_size, draw=draw)
    }


def test_a_sampled_answer_depends_on_its_seed_and_not_on_the_batch(model, tokenizer):
    first = sample(model, tokenizer, seed=0, batch_size=3)

    assert first == sample(model, tokenizer, seed=0, batch_size=8)
    assert first != sample(model, tokenizer, seed=1, batch_size=3)


def test_stop_tokens_include_those_of_the_generation_config(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", [7, 2])
    tokenizer.eos_token_id = 5

    assert generate.stop_token_ids(model, tokenizer) == [2, 5, 7]


def test_an_answer_has_its_number_of_tokens_and_its_end(model, tokenizer):
    ids = [decode_single(model, tokenizer, prompt, length=40) for prompt in PROMPTS]
    stops = [row[-1] == tokenizer.eos_token_id for row in ids]

    batches = generate.stream_batches(model, tokenizer, PROMPTS, max_new_tokens=40, batch_size=3)
    answers = {answer.index: answer for batch in batches for answer in batch}

    for index, row in enumerate(ids):
        assert answers[index].num_tokens == len(row)
        assert answers[index].finish == ("stop" if stops[index] else "length")
