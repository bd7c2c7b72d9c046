"""Engine llama_cpp: sampling parameters, log-probabilities, grammars, cancelling, crashes."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from tuneline.errors import SourceError
from tuneline.serve.engines import http_stream
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest, Grammar, Sampling
from tuneline.serve.engines.llama_cpp import LlamaCppEngine, compile_grammar

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return tokenizer("What is one and two?")["input_ids"]


@pytest.fixture(scope="module")
def partial(tokenizer):
    """Tokens that are a part of a character: a random model would write invalid UTF-8."""
    return [index for index in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([index])]


def generate_greedily(reference, prompt, count, partial, **options):
    """Return the tokens that transformers generates, without parts of characters."""
    ids = torch.tensor([prompt])
    options |= {"do_sample": False, "max_new_tokens": count, "eos_token_id": 2, "suppress_tokens": partial}
    result = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return result[0, len(prompt) :].tolist()


def biased(partial, **keys):
    """Return sampling parameters without parts of characters."""
    return Sampling(**keys, logit_bias=dict.fromkeys(partial, -1000.0))


def test_greedy_decoding_gives_the_tokens_of_transformers(engine, reference, collect, prompt, partial):
    expected = generate_greedily(reference, prompt, 24, partial)

    tokens = collect(engine, GenerationRequest(prompt, 24, biased(partial, temperature=0), (2,)))

    assert [token.id for token in tokens] == expected
    assert [token.finish for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].finish == ("stop" if expected[-1] == 2 else "length")
    assert all(token.logprob is None for token in tokens)


def test_the_repetition_penalty_is_that_of_transformers(engine, reference, collect, prompt, partial):
    expected = generate_greedily(reference, prompt, 16, partial, repetition_penalty=1.8)
    sampling = biased(partial, temperature=0, repetition_penalty=1.8)

    tokens = collect(engine, GenerationRequest(prompt, 16, sampling, (2,)))

    assert [token.id for token in tokens] == expected
    assert expected != generate_greedily(reference, prompt, 16, partial)


def test_tokens_that_are_parts_of_characters_are_complete(engine, collect, prompt, tokenizer):
    text = "é👩‍👧 你"
    grammar = Grammar("regex", text)
    body = {"prompt": prompt, "n_predict": 60, "temperature": 0, "return_tokens": True}
    body["grammar"] = compile_grammar(grammar)
    expected = asyncio.run(http_stream.post(engine.clients, engine.child, "/completion", body))["tokens"]

    tokens = collect(engine, GenerationRequest(prompt, 60, GREEDY, (2,), grammar=grammar))

    assert tokenizer.decode(expected, skip_special_tokens=True) == text
    assert [token.id for token in tokens] == expected
    limited = collect(engine, GenerationRequest(prompt, 4, GREEDY, (2,), grammar=grammar))
    assert [token.id for token in limited] == expected[:4], "the limit is in the middle of a character"
    assert limited[-1].finish == "length"


def test_log_probabilities_are_those_of_the_unmodified_logits(engine, reference, collect, tokenizer):
    prompt = tokenizer("The quick")["input_ids"]
    letters = [tokenizer(letter)["input_ids"][0] for letter in "ABCD"]
    bias = dict.fromkeys(letters, 50.0)

    tokens = collect(
        engine, GenerationRequest(prompt, 3, Sampling(temperature=0, logit_bias=bias), (2,), top_logprobs=4)
    )

    ids = [token.id for token in tokens]
    assert set(ids) <= set(letters), "the bias decides"
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=0.02)
        assert [value for _, value in token.top] == pytest.approx(row.topk(4).values.tolist(), abs=0.02)
        assert token.top[0][0] == int(row.argmax())


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}], ids=str)
def test_each_filter_alone_makes_sampling_greedy(engine, reference, collect, prompt, partial, sampling):
    expected = generate_greedily(reference, prompt, 8, partial)

    assert [
        token.id for token in collect(engine, GenerationRequest(prompt, 8, biased(partial, **sampling), (2,)))
    ] == expected


def test_a_seed_repeats_an_answer_and_another_seed_changes_it(engine, collect, prompt, partial):
    def answer(seed):
        sampling = biased(partial, temperature=2.0, seed=seed)
        return [token.id for token in collect(engine, GenerationRequest(prompt, 12, sampling, (2,)))]

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(4)}) == 4


def test_the_temperature_is_applied_before_top_p_as_in_transformers(engine, collect, tokenizer):
    prompt = tokenizer("The")["input_ids"]

    def distinct(temperature):
        sampling = [Sampling(temperature=temperature, top_p=0.5, seed=seed) for seed in range(24)]
        return len({collect(engine, GenerationRequest(prompt, 1, each, (2,)))[0].id for each in sampling})

    assert distinct(0.1) < distinct(4.0), "a high temperature flattens the distribution that top_p cuts"


def test_invalid_utf_8_ends_with_a_finish_reason(engine, collect, prompt, tokenizer):
    lead = next(i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) == "ð")  # byte F0

    tokens = collect(engine, GenerationRequest(prompt, 6, Sampling(temperature=0, logit_bias={lead: 1000.0}), (2,)))

    assert tokens[-1].finish == "length"
    assert 1 <= len(tokens) <= 6


def test_stop_ids_end_the_answer(engine, reference, collect, prompt, partial):
    stop = generate_greedily(reference, prompt, 8, partial)[3]

    tokens = collect(engine, GenerationRequest(prompt, 8, biased(partial, temperature=0), (2, stop)))

    first = [token.id for token in tokens].index(stop)
    assert first == len(tokens) - 1
    assert tokens[-1].finish == "stop"


NUMBER = {"type": "object", "properties": {"a": {"enum": [1, 2]}}}
GRAMMARS = [
    (Grammar("regex", "[a-c]{3}/[0-9]"), lambda text: len(text) == 5 and text[3] == "/"),
    (Grammar("lark", 'start: "yes" | "no"'), lambda text: text in ("yes", "no")),
    (
        Grammar("json_schema", json.dumps({**NUMBER, "required": ["a"], "additionalProperties": False})),
        lambda text: json.loads(text)["a"] in (1, 2),
    ),
    (
        Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": ["é👩"]}, "minItems": 1, "maxItems": 1})),
        lambda text: json.loads(text) == ["é👩"],
    ),
]


@pytest.mark.parametrize(("grammar", "is_valid"), GRAMMARS, ids=lambda value: getattr(value, "kind", ""))
def test_a_grammar_constrains_the_answer(engine, collect, tokenizer, prompt, grammar, is_valid):
    request = GenerationRequest(prompt, 60, Sampling(seed=3), (2,), grammar=grammar)

    tokens = collect(engine, request)

    text = tokenizer.decode([token.id for token in tokens], skip_special_tokens=True)
    assert is_valid(text), text
    assert tokens[-1].finish == "stop"


def test_invalid_grammars_adapters_and_penalties_are_rejected(engine, collect, prompt):
    bad = [
        {"grammar": Grammar("json_schema", '{"type": "frob"}')},
        {"grammar": Grammar("lark", "start: nothing")},
        {"grammar": Grammar("regex", "(")},
        {"adapter": "other"},
        {"sampling": Sampling(presence_penalty=1)},
    ]
    for keys in bad:
        with pytest.raises(ValueError, match=r"not supported|no adapters|not support"):
            collect(engine, GenerationRequest(prompt, 4, **keys))
    assert {"presence_penalty", "frequency_penalty"} <= engine.unsupported


def test_an_embedding_is_the_normalized_mean_of_the_last_hidden_states(engine, reference, prompt):
    with torch.no_grad():
        states = reference.model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
    expected = states / states.norm()

    actual = asyncio.run(engine.embed(prompt))

    assert torch.cosine_similarity(torch.tensor(actual), expected, dim=0) > 0.9999
    assert sum(value * value for value in actual) == pytest.approx(1, abs=1e-3)


def running_slots(engine):
    import requests

    headers = {"Authorization": f"Bearer {engine.child.key}"}
    slots = requests.get(f"{engine.child.url}/slots", headers=headers, timeout=5).json()
    return sum(slot["is_processing"] for slot in slots)


def test_closing_the_iterator_frees_the_slot_at_once(engine, prompt):
    async def cancel():
        tokens = engine.generate(GenerationRequest(prompt, 230, Sampling(logit_bias={2: -100, 0: -100}), ()))
        await anext(tokens)
        assert engine.current_load().running == 1
        await tokens.aclose()
        assert engine.current_load().running == 0
        await asyncio.sleep(0.3)

    asyncio.run(cancel())

    assert running_slots(engine) == 0


def test_the_child_rejects_requests_without_the_key(engine):
    import requests

    assert requests.post(f"{engine.child.url}/completion", json={"prompt": [1]}, timeout=5).status_code == 401


def test_a_killed_child_fails_its_requests_at_once_and_comes_back(gguf_folder, tokenizer, engine_home, collect, prompt):
    engine = LlamaCppEngine.load(gguf_folder / "model.gguf", tokenizer=tokenizer, max_length=4000, threads=1)
    request = GenerationRequest(prompt, 3900, Sampling(logit_bias={2: -100, 0: -100}), ())

    async def kill_during_an_answer():
        tokens = engine.generate(request)
        [server] = psutil.Process(engine.child.pid).children()
        await anext(tokens)
        os.kill(server.pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(EngineFailedError, match="died"):
            async for _ in tokens:
                pass
        return time.monotonic() - started

    try:
        assert asyncio.run(kill_during_an_answer()) < 5
        deadline = time.monotonic() + 60
        while not (engine.is_healthy() and engine.child.starts == 2):
            assert time.monotonic() < deadline, engine.child.log_tail()
            time.sleep(0.05)
        assert len(collect(engine, GenerationRequest(prompt, 4, GREEDY, ()))) == 4
    finally:
        engine.close()
    assert not engine.is_healthy()
    with pytest.raises(EngineFailedError, match="closed"):
        collect(engine, request)


def test_a_file_that_llama_cpp_cannot_load_is_an_error_with_its_log(tokenizer, engine_home, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(60))

    with pytest.raises(EngineFailedError, match=r"exited with code[\s\S]*model"):
        LlamaCppEngine.load(file, tokenizer=tokenizer, max_length=64)
    with pytest.raises(SourceError, match="needs a GGUF file"):
        LlamaCppEngine.load(Path("nothing.gguf"), tokenizer=tokenizer)
