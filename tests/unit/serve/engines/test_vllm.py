"""Engine vllm against a stand-in that speaks vLLM's protocol; vLLM itself is not installed."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from tuneline.errors import SourceError
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest, Grammar, Sampling
from tuneline.serve.engines.vllm import VllmEngine

STAND_IN = Path(__file__).parents[3] / "vllm_stand_in.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory, engine_home):
    """A folder with the stand-in as a Python environment, an adapter, and the record of requests."""
    folder = tmp_path_factory.mktemp("vllm")
    package = folder / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    shutil.copy(STAND_IN, package / "api_server.py")
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\n[ -z "$PYTHONPATH" ] || exit 9\nexport PYTHONPATH={folder}/site RECORD={folder}/record\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 12, "base_model_name_or_path": "elsewhere"})
    )
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="module")
def vllm(world):
    engine = VllmEngine.load(
        world / "model", python=world / "python", adapters={"tuned": world / "adapter"}, max_batch_size=7, max_length=99
    )
    yield engine
    engine.close()


def last_record(world):
    return [json.loads(line) for line in (world / "record").read_text().splitlines()][-1]


def test_the_server_gets_the_options_of_the_engine(vllm, world, collect):
    collect(vllm, GenerationRequest([1, 2], 3))

    options = last_record(world)["options"]
    assert options["model"] == str(world / "model")
    assert (options["max_model_len"], options["max_num_seqs"], options["max_lora_rank"]) == ("99", "7", "16")
    assert options["enable_lora"]
    assert options["generation_config"] == "vllm", "default sampling parameters of the model are not applied"
    assert (vllm.max_length, vllm.version, vllm.adapters) == (99, "0.33.0", ("tuned",))


def test_tokens_and_finish_reasons_are_read(vllm, collect):
    tokens = collect(vllm, GenerationRequest([10, 20], 5))
    assert [(token.id, token.finish) for token in tokens] == [
        (30, None),
        (31, None),
        (32, None),
        (33, None),
        (34, "length"),
    ]

    tokens = collect(vllm, GenerationRequest([10, 20], 50, stop_ids=(33,)))
    assert (tokens[-1].id, tokens[-1].finish) == (33, "stop")


def test_log_probabilities_are_read(vllm, collect):
    [token] = collect(vllm, GenerationRequest([5], 1, top_logprobs=2))
    assert (token.logprob, token.top) == (-0.5, ((5, -0.5), (6, -1.0)))

    [token] = collect(vllm, GenerationRequest([5], 1, top_logprobs=0))
    assert (token.logprob, token.top) == (-0.5, ())


def test_every_sampling_parameter_is_sent(vllm, world, collect):
    sampling = Sampling(0.5, 0.9, 40, 0.05, 0.1, 0.2, 1.3, {7: 2.5}, 11)

    collect(vllm, GenerationRequest([1], 2, sampling, (2, 3)))

    body = last_record(world)["body"]
    expected = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repetition_penalty": 1.3, "logit_bias": {"7": 2.5}, "seed": 11,
        "stop_token_ids": [2, 3], "prompt": [1], "max_tokens": 2, "stream": True, "return_token_ids": True,
        "skip_special_tokens": False, "model": "model",
    }  # fmt: skip
    assert body == expected


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (Grammar("json_object"), {"json_object": True}),
        (Grammar("json_schema", '{"type": "object"}'), {"json": {"type": "object"}}),
        (Grammar("regex", "a+"), {"regex": "a+"}),
        (Grammar("lark", 'start: "a"'), {"grammar": 'start: "a"'}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_grammars_are_sent_as_structured_outputs(vllm, world, collect, grammar, expected):
    collect(vllm, GenerationRequest([1], 2, grammar=grammar))

    assert last_record(world)["body"]["structured_outputs"] == expected


def test_a_rejected_request_is_a_value_error(vllm, collect):
    with pytest.raises(ValueError, match="Grammar error"):
        collect(vllm, GenerationRequest([1], 2, grammar=Grammar("regex", "bad")))


def test_an_adapter_is_found_by_the_resolver(vllm, world, collect):
    collect(vllm, GenerationRequest([1], 2, adapter="tuned"))

    assert last_record(world)["body"]["model"] == "tuned"
    with pytest.raises(ValueError, match="no adapter 'other'"):
        collect(vllm, GenerationRequest([1], 2, adapter="other"))


def test_closing_the_iterator_cancels_the_request(vllm, world):
    async def cancel():
        tokens = vllm.generate(GenerationRequest([1], 5000))
        await anext(tokens)
        assert vllm.current_load() == (1, 0)
        await tokens.aclose()
        for _ in range(200):
            if last_record(world).get("cancelled"):
                return True
            await asyncio.sleep(0.02)
        return False

    assert asyncio.run(cancel())
    assert vllm.current_load() == (0, 0)


def test_a_missing_environment_is_an_error_with_the_set_up(world):
    for python in (None, world / "nothing", world / "record"):
        with pytest.raises(SourceError, match=r"engine_python: .*python3 -m venv ~/vllm"):
            VllmEngine.load(world / "model", python=python)


def test_a_server_that_does_not_start_is_an_error_with_its_log(world):
    with pytest.raises(EngineFailedError, match=r"exited with code 1[\s\S]*No module named"):
        VllmEngine.load(world / "model", python=sys.executable)
