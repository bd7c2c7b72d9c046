"""The decode loop: its answers are those of `generate`, whatever runs next to them."""

import asyncio
import json
import shutil
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from tests import architectures
from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.evaluation.tasks.reward import reward_scorer
from tuneline.model import value_head
from tuneline.model.load import load_model
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest, Grammar, Sampling
from tuneline.serve.engines.transformers.batch import verify_batching
from tuneline.serve.engines.transformers.engine import TransformersEngine

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).eval()


@pytest.fixture
def engine(model):
    engine = TransformersEngine(model)
    yield engine
    engine.close()


def prompts(num, longest=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (num,), generator=generator).tolist()
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]


def generated(model, ids, max_tokens):
    output = model.generate(
        torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return output[0, len(ids) :].tolist()


async def answer(engine, request):
    return [token async for token in engine.generate(request)]


async def answer_all(engine, requests, delay=0.0):
    async def later(i, request):
        await asyncio.sleep(delay * i)
        return await answer(engine, request)

    return await asyncio.gather(*(later(i, request) for i, request in enumerate(requests)))


def wait_until_idle(engine):
    """Wait until the decode loop has removed the ended requests, which it does after it emitted their last token."""
    deadline = time.monotonic() + 5
    while engine.current_load() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.current_load() == (0, 0)


def test_concurrent_answers_are_those_of_generate(engine, model):
    requests = [GenerationRequest(ids, 8 + 3 * i % 11, GREEDY) for i, ids in enumerate(prompts(12))]

    answers = asyncio.run(answer_all(engine, requests, delay=0.01))

    for request, tokens in zip(requests, answers, strict=True):
        assert [token.id for token in tokens] == generated(model, request.prompt_ids, request.max_tokens)
        assert [token.finish for token in tokens] == [None] * (len(tokens) - 1) + ["length"]
    assert wait_until_idle(engine)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "mistral", "gpt2", "mamba", "phi3"])
def test_every_kind_of_cache_gives_the_answers_of_generate(name):
    """With sliding windows, with positions in the embedding, and recurrent, which is not batched."""
    torch.manual_seed(0)
    model = architectures.build(name).float().eval()
    model.generation_config.eos_token_id = None
    limit = model.config.get_text_config().vocab_size
    requests = [GenerationRequest([i % limit for i in ids], 6, GREEDY) for ids in prompts(4, 20)]
    engine = TransformersEngine(model, max_length=64)

    answers = asyncio.run(answer_all(engine, requests))
    engine.close()

    assert verify_batching(model) == (name != "mamba")
    for request, tokens in zip(requests, answers, strict=True):
        assert [token.id for token in tokens] == generated(model, request.prompt_ids, 6)


def test_a_long_prompt_is_computed_in_chunks_next_to_running_answers(engine, model, monkeypatch):
    monkeypatch.setattr("tuneline.serve.engines.transformers.batch.PREFILL_CHUNK", 16)
    requests = [GenerationRequest(ids, 20, GREEDY) for ids in [*prompts(3, 8), prompts(1, 300, seed=3)[0]]]

    answers = asyncio.run(answer_all(engine, requests))

    for request, tokens in zip(requests, answers, strict=True):
        assert [token.id for token in tokens] == generated(model, request.prompt_ids, 20)


def test_a_seeded_answer_does_not_depend_on_other_requests(engine):
    sampled = GenerationRequest(prompts(1)[0], 12, Sampling(temperature=1.5, top_p=0.9, seed=7))
    others = [GenerationRequest(ids, 9, Sampling(temperature=1.0)) for ids in prompts(5, seed=1)]

    alone = asyncio.run(answer(engine, sampled))
    first, *_, last = asyncio.run(answer_all(engine, [sampled, *others, sampled]))

    assert [token.id for token in alone] == [token.id for token in first] == [token.id for token in last]
    other = asyncio.run(answer(engine, GenerationRequest(sampled.prompt_ids, 12, Sampling(temperature=1.5, seed=8))))
    assert [token.id for token in other] != [token.id for token in alone]


def test_logprobs_are_those_of_the_unmodified_logits(engine, model):
    ids = prompts(1)[0]
    request = GenerationRequest(ids, 5, Sampling(temperature=0, logit_bias={9: 50.0}), top_logprobs=3)

    tokens = asyncio.run(answer(engine, request))

    assert [token.id for token in tokens] == [9] * 5
    with torch.no_grad():
        logprobs = model(torch.tensor([ids + [9] * 4])).logits[0, len(ids) - 1 :].log_softmax(-1)
    for token, expected in zip(tokens, logprobs, strict=True):
        assert token.logprob == pytest.approx(float(expected[9]), abs=1e-4)
        values, best = expected.topk(3)
        assert [entry[0] for entry in token.top] == best.tolist()
        assert [entry[1] for entry in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_stop_token_ends_the_answer(engine, model):
    ids = prompts(1)[0]
    expected = generated(model, ids, 10)

    tokens = asyncio.run(answer(engine, GenerationRequest(ids, 10, GREEDY, stop_ids=(expected[4],))))

    assert [token.id for token in tokens] == expected[: expected.index(expected[4]) + 1]
    assert tokens[-1].finish == "stop"


def test_closing_the_iterator_frees_the_slot_at_once(model):
    engine = TransformersEngine(model, max_batch_size=1)

    async def session():
        request = GenerationRequest(prompts(1)[0], 400, Sampling(temperature=1.0))
        async with aclosing(engine.generate(request)) as tokens:
            await anext(tokens)
            waiting = asyncio.create_task(answer(engine, GenerationRequest([5, 6], 2, GREEDY)))
            await asyncio.sleep(0.05)
            assert engine.current_load() == (1, 1)
        return await asyncio.wait_for(waiting, timeout=10)

    tokens = asyncio.run(session())
    engine.close()

    assert len(tokens) == 2


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(ValueError, match="the prompt is empty"):
        asyncio.run(answer(engine, GenerationRequest([], 4)))
    with pytest.raises(ValueError, match="has 5 tokens and max_tokens is 1000000, more than the"):
        asyncio.run(answer(engine, GenerationRequest([5] * 5, 10**6)))
    with pytest.raises(ValueError, match="no adapter 'x'"):
        asyncio.run(answer(engine, GenerationRequest([5], 4, adapter="x")))


def test_a_failure_in_the_decode_loop_ends_every_request(model, monkeypatch):
    engine = TransformersEngine(model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tuneline.serve.engines.transformers.batch.Batch.step", fail)
    requests = [GenerationRequest(ids, 5, GREEDY) for ids in prompts(3)]

    async def session():
        return await asyncio.gather(*(answer(engine, each) for each in requests), return_exceptions=True)

    results = asyncio.run(session())

    assert {type(result) for result in results} == {EngineFailedError}
    assert not engine.is_healthy()
    with pytest.raises(EngineFailedError):
        asyncio.run(answer(engine, requests[0]))


def test_a_closed_engine_ends_running_answers(model):
    engine = TransformersEngine(model)

    async def session():
        tokens = engine.generate(GenerationRequest([5, 6], 400, Sampling()))
        await anext(tokens)
        await asyncio.to_thread(engine.close)
        async for _ in tokens:
            pass

    with pytest.raises(EngineFailedError, match="stopped"):
        asyncio.run(session())


def test_adapters_are_selected_per_request(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        adapted = get_peft_model(load_model(tiny_model), LoraConfig(r=4, target_modules="all-linear"))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
        adapted.save_pretrained(tmp_path / name)
    engine = TransformersEngine.load(
        tiny_model, tokenizer=None, adapters={name: tmp_path / name for name in ("one", "two")}
    )
    ids = prompts(1)[0]
    names = [None, "one", "two"] * 2

    answers = asyncio.run(answer_all(engine, [GenerationRequest(ids, 8, GREEDY, adapter=name) for name in names]))
    engine.close()

    from peft import PeftModel

    for name, tokens in zip(names, answers, strict=True):
        base = load_model(tiny_model).eval()
        model = base if name is None else PeftModel.from_pretrained(base, tmp_path / name).eval()
        assert [token.id for token in tokens] == generated(model, ids, 8)
    assert len({tuple(token.id for token in tokens) for tokens in answers}) == 3


def test_embeddings_are_normalized_means_of_hidden_states(engine, model):
    ids = prompts(1)[0]

    embedding = asyncio.run(engine.embed(ids))

    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert embedding == pytest.approx((states / states.norm()).tolist(), abs=1e-4)


def test_the_cache_is_freed_after_the_last_answer(engine):
    asyncio.run(answer_all(engine, [GenerationRequest(ids, 5, GREEDY) for ids in prompts(4)]))

    assert wait_until_idle(engine)
    assert all(batch._cache is None for batch in engine._batches.values())


def test_a_grammar_constrains_one_answer_of_a_batch(tiny_model, model):
    tokenizer = load_tokenizer_from(tiny_model)
    engine = TransformersEngine.load(tiny_model, tokenizer=tokenizer)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    grammar = Grammar("json_schema", json.dumps(schema))
    stop = (tokenizer.eos_token_id,)
    requests = [
        GenerationRequest(ids, 40, Sampling(temperature=1.0, seed=i), stop_ids=stop, grammar=grammar if i else None)
        for i, ids in enumerate(prompts(3))
    ]

    free, *constrained = asyncio.run(answer_all(engine, requests))
    with pytest.raises(ValueError, match="not supported"):
        asyncio.run(answer(engine, replace(requests[1], grammar=Grammar("regex", "(a"))))
    engine.close()

    texts = [tokenizer.decode([token.id for token in tokens[:-1]]) for tokens in constrained]
    assert all(set(json.loads(text)) == {"ok"} for text in texts)
    assert [tokens[-1].finish for tokens in constrained] == ["stop", "stop"]
    assert len(free) == 40 or free[-1].finish == "stop"


def test_a_grammar_that_fails_ends_its_answer_alone(model):
    class Failing:
        def mask(self):
            raise ValueError("the grammar became too complex")

        def accept(self, token):
            raise AssertionError

    engine = TransformersEngine(model, make_constraint=lambda grammar: Failing())
    ids = prompts(2)
    requests = [GenerationRequest(ids[0], 6, grammar=Grammar("json_object")), GenerationRequest(ids[1], 6, GREEDY)]

    async def session():
        return await asyncio.gather(*(answer(engine, each) for each in requests), return_exceptions=True)

    failed, tokens = asyncio.run(session())
    engine.close()

    assert str(failed) == "the grammar became too complex"
    assert [token.id for token in tokens] == generated(model, ids[1], 6)


def test_scores_are_those_of_the_evaluation(tiny_model, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(tiny_model, folder)
    model = load_model(tiny_model)
    head = value_head.build_value_head(model)
    torch.nn.init.normal_(head.summary.weight)
    value_head.save_value_head(head, folder)
    tokenizer = load_tokenizer_from(tiny_model)
    expected = reward_scorer(EvaluateStepConfig(reward_model=folder), tokenizer)(["One and"], [" two"], [""])
    ids = [*tokenizer("One and")["input_ids"], *tokenizer(" two")["input_ids"], tokenizer.eos_token_id]
    engine = TransformersEngine.load(folder, tokenizer=tokenizer)

    score = asyncio.run(engine.score(ids))
    engine.close()

    assert score == pytest.approx(expected[0], abs=1e-4)
    assert score != 0


def test_a_language_model_has_no_scores(engine):
    with pytest.raises(ValueError, match="not a reward model"):
        asyncio.run(engine.score([5]))
