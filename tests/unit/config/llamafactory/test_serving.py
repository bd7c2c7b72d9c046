"""LlamaFactory's inference files as settings of a server."""

import os
from pathlib import Path

import pytest
import yaml

from tuneline.config import llamafactory
from tuneline.errors import RecipeError


def write(**content):
    path = Path("theirs.yaml")
    base = {"model_name_or_path": "a/b", "template": "llama3", "infer_backend": "huggingface"}
    path.write_text(yaml.safe_dump(base | content, sort_keys=False))
    return path


def settings(**content):
    return llamafactory.translate_serving(write(**content)).config


def ignored(imported):
    return {key for keys in imported.report.ignored.values() for key in keys}


@pytest.mark.skipif("TUNELINE_TEST_DATA" not in os.environ, reason="needs LlamaFactory's examples")
@pytest.mark.parametrize(
    ("name", "model", "base"),
    [
        ("qwen3", "Qwen/Qwen3-4B-Instruct-2507", None),
        ("qwen3_full_sft", "{cwd}/saves/qwen3-4b/full/sft", None),
        ("qwen3_lora_sft", "{cwd}/saves/qwen3-4b/lora/sft", "Qwen/Qwen3-4B-Instruct-2507"),
    ],
)
def test_the_inference_examples_are_translated(project, test_data, name, model, base):
    imported = llamafactory.translate_serving(test_data / "llamafactory_examples" / "inference" / f"{name}.yaml")

    assert (imported.config.model, imported.config.base) == (model.format(cwd=project), base)
    assert (imported.config.engine, imported.config.trust_remote_code) == ("transformers", True)
    assert imported.config.template == "qwen"
    assert not imported.report.ignored


def test_answers_are_sampled_with_the_defaults_of_llamafactory(project):
    generation = settings().generation

    assert (generation.temperature, generation.top_p, generation.top_k, generation.max_tokens) == (0.95, 0.7, 50, 1024)
    greedy = settings(do_sample=False, max_new_tokens=20).generation
    assert (greedy.temperature, greedy.top_p, greedy.max_tokens) == (0, None, 20)


def test_all_inference_keys_are_translated(project):
    (project / "merged").mkdir()
    config = settings(
        model_name_or_path="merged",
        infer_dtype="bfloat16",
        default_system="Be brief.",
        enable_thinking=False,
        temperature=0.2,
        repetition_penalty=1.1,
        trust_remote_code=False,
    )

    assert config.model == str(project / "merged")
    assert (config.dtype, config.system, config.chat_template_kwargs) == (
        "bfloat16",
        "Be brief.",
        {"enable_thinking": False},
    )
    assert (config.generation.temperature, config.generation.repetition_penalty) == (0.2, 1.1)
    assert not config.trust_remote_code


def test_a_revision_is_part_of_the_model(project):
    assert settings(model_revision="v2").model == "a/b@v2"


def test_keys_of_the_training_are_ignored_and_reported(project):
    imported = llamafactory.translate_serving(
        write(finetuning_type="lora", cutoff_len=1024, deepspeed="ds.json", vllm_gpu_util=0.5, num_beams=1)
    )

    assert ignored(imported) == {"finetuning_type", "cutoff_len", "deepspeed", "vllm_gpu_util", "num_beams"}


def test_vllm_needs_its_python(project):
    path = write(infer_backend="vllm", vllm_maxlen=4096)

    with pytest.raises(RecipeError, match=r"theirs.yaml:3: infer_backend: .*engine_python: required"):
        llamafactory.translate_serving(path)
    config = llamafactory.translate_serving(path, engine_python="/opt/vllm/bin/python").config
    assert (config.engine, config.max_length) == ("vllm", 4096)


def test_sglang_is_replaced_and_reported(project):
    imported = llamafactory.translate_serving(write(infer_backend="sglang"))

    assert imported.config.engine == "transformers"
    assert ("infer_backend", "SGLang is not supported; the engine is transformers") in imported.report.differs


def test_options_replace_the_values_of_the_file(project):
    config = llamafactory.translate_serving(write(), port=9000, dtype="float32").config

    assert (config.port, config.dtype) == (9000, "float32")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("infer_backend", "ktransformers", "'ktransformers' is not supported"),
        ("infer_backend", "other", "unknown infer_backend 'other'"),
        ("num_beams", 4, "beam search is not supported"),
        ("quantization_bit", 4, "not quantized while they are loaded"),
        ("adapter_name_or_path", "one,two", "names 2 adapters"),
        ("temperature", "warm", "got 'warm'"),
        ("temperature", -1, "generation.temperature"),
        ("template", "lama3", "unknown template 'lama3'"),
        ("do_train", True, "not for inference, but for: train"),
        ("export_dir", "merged", "not for inference, but for: export"),
        ("temprature", 1, "is not a key of LlamaFactory"),
    ],
)
def test_unsupported_keys_are_reported_with_their_line(project, key, value, message):
    with pytest.raises(RecipeError, match=rf"theirs.yaml:\d: {key}: .*{message}") as caught:
        settings(**{key: value})
    assert "\n" not in str(caught.value)


def test_a_run_refuses_an_inference_file_and_names_the_command(project):
    with pytest.raises(RecipeError, match="infer_backend: .*[Ss]erve this file with tuneline serve"):
        llamafactory.translate(write())
