"""Invalid inputs of the model loader: one clear error each, before any weights are read."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tuneline.config import existence
from tuneline.config import load as loading
from tuneline.errors import RecipeError, TunelineError
from tuneline.model import load, precision, resolve


@pytest.fixture
def project(project_template, tmp_path, home):
    return shutil.copytree(project_template, tmp_path / "project")


def error_message(project, monkeypatch, **changes):
    """Return the error message; reading weights fails the test."""
    monkeypatch.setattr(load, "read_weights", lambda *a, **k: pytest.fail("weights were read"))
    path = tiny.write_config(project / "changed.yaml", tiny.recipe(**changes))
    with pytest.raises(TunelineError) as error:
        resolve_recipe(path)
    return str(error.value)


def resolve_recipe(path):
    """Do the checks of a run before its first step."""
    recipe = loading.load(path).recipe
    existence.check(recipe)
    return resolve.resolve_inputs(recipe.for_resolve())


def split_in_shards(folder):
    """Write the weights as two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_a_missing_shard(project, monkeypatch):
    split_in_shards(project / "model")
    (project / "model" / "model-00002-of-00002.safetensors").unlink()

    assert "model-00002-of-00002.safetensors" in error_message(project, monkeypatch)


def test_complete_shards_are_accepted(project):
    split_in_shards(project / "model")
    recipe = loading.load(tiny.write_config(project / "changed.yaml", tiny.recipe())).recipe

    _, base_model, _ = resolve.resolve_inputs(recipe.for_resolve())

    assert len([file for file in base_model.only().files if file.name.endswith(".safetensors")]) == 2


def test_a_truncated_file(project, monkeypatch):
    file = project / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    message = error_message(project, monkeypatch)
    assert "model.safetensors" in message
    assert "bytes" in message


def test_an_invalid_header(project, monkeypatch):
    (project / "model" / "model.safetensors").write_bytes(struct.pack("<Q", 12) + b"not json {{{" + b"\0" * 50)

    assert "model.safetensors" in error_message(project, monkeypatch)


def test_weights_in_pickle_files(project, monkeypatch):
    folder = project / "model"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    assert "load.allow_pickle: true" in error_message(project, monkeypatch)


def test_custom_code_of_a_model(project, monkeypatch):
    path = project / "model" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model_type": "homemade", "auto_map": {"AutoConfig": "own.Config"}}))

    assert "load.trust_remote_code" in error_message(project, monkeypatch)


def test_a_tokenizer_with_more_ids_than_rows(project, monkeypatch):
    path = project / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 5000, "content": "<|far|>"})
    path.write_text(json.dumps(content))

    assert "5000" in error_message(project, monkeypatch)


def test_a_target_that_does_not_exist(project, monkeypatch):
    message = error_message(project, monkeypatch, method={"type": "lora", "target_modules": ["q_porj"]})

    assert "method.target_modules" in message
    assert "Did you mean 'q_proj'?" in message


def test_a_rank_above_the_matrix(project, monkeypatch):
    message = error_message(project, monkeypatch, method={"type": "lora", "r": 500})

    assert "method.r" in message
    assert "500" in message


def test_an_adapter_for_another_base(project, monkeypatch, tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=360, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )
    get_peft_model(other, LoraConfig(target_modules=["q_proj"])).save_pretrained(project / "adapter")

    message = error_message(project, monkeypatch, load={"adapters": [{"path": "adapter"}]})
    assert "load.adapters" in message
    assert "a different base model" in message


def test_a_folder_without_an_adapter(project, monkeypatch):
    assert "adapter_config.json" in error_message(project, monkeypatch, load={"adapters": [{"path": "model"}]})


def test_full_tuning_of_a_quantized_model(project, monkeypatch):
    path = project / "model" / "config.json"
    content = json.loads(path.read_text())
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(content | {"quantization_config": kind}))

    message = error_message(project, monkeypatch, method={"type": "full"})
    assert "bnb_4bit" in message
    assert "without gradients" in message


def test_rows_longer_than_the_context_of_the_model(project, monkeypatch):
    message = error_message(project, monkeypatch, tokenize={"max_length": 4096})

    assert "load.rope_scaling" in message
    assert "512" in message


def test_a_new_token_that_already_exists(project, monkeypatch):
    message = error_message(project, monkeypatch, load={"new_special_tokens": ["<|im_end|>"]})

    assert "load.new_special_tokens: '<|im_end|>' is already in the vocabulary" in message


def test_a_template_with_tokens_outside_of_the_vocabulary(project, monkeypatch):
    assert "template" in error_message(project, monkeypatch, template="gemma")


def test_a_missing_library_is_reported(project, monkeypatch):
    path = project / "model" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))

    assert "pip install" in error_message(project, monkeypatch)


def test_dtypes_that_the_device_does_not_support(project, monkeypatch):
    assert error_message(project, monkeypatch, load={"dtype": "float16"}).startswith(
        "load.dtype: float16 needs a loss scaler"
    )

    monkeypatch.setattr(precision, "_supports_bfloat16", lambda kind: (False, "an old device"))
    message = error_message(project, monkeypatch, evaluate={"dtype": "bfloat16"})
    assert (
        message == "evaluate.dtype: bfloat16 is not supported by this device: an old device. Set evaluate.dtype: auto."
    )
    assert "load.dtype: bfloat16 is not" in error_message(project, monkeypatch, load={"dtype": "bfloat16"})


def test_an_invalid_rank_is_a_recipe_error(project):
    recipe = loading.load(
        tiny.write_config(project / "changed.yaml", tiny.recipe(method={"type": "lora", "r": 500}))
    ).recipe

    with pytest.raises(RecipeError):
        resolve.resolve_inputs(recipe.for_resolve())


def test_an_unmergeable_adapter_cannot_be_merged(project, monkeypatch):
    from peft import PromptTuningConfig, get_peft_model

    base = load.load_model(project / "model")
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        project / "adapter"
    )

    message = error_message(project, monkeypatch, load={"adapters": [{"path": "adapter"}]})
    assert "trained with prompt, which cannot be merged" in message
