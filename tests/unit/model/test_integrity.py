"""Complete, incomplete and damaged model directories."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tuneline.errors import RecipeError, SourceError
from tuneline.model import integrity


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def sharded(tiny_model, tmp_path) -> Path:
    target = shutil.copytree(tiny_model, tmp_path / "sharded")
    (target / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(target, max_shard_size="50KB")
    return target


@pytest.fixture
def pickled(folder) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors"))


def test_complete_folders_pass(folder, sharded):
    integrity.check_model_folder(folder)
    integrity.check_model_folder(sharded)
    assert len(shards_of(sharded)) > 2


@pytest.mark.parametrize("architecture", ["untied", "grown"])
def test_other_output_of_save_pretrained_passes(tiny_model, folder, architecture):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=architecture == "grown")
    if architecture == "grown":
        model.resize_token_embeddings(400, mean_resizing=False)
    model.save_pretrained(folder)

    integrity.check_model_folder(folder)


def test_links_into_a_cache_are_followed(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)

    integrity.check_model_folder(snapshot)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        integrity.check_model_folder(snapshot)


def test_missing_shards_are_named(sharded):
    first, *_, last = shards_of(sharded)
    first.unlink()
    last.unlink()

    with pytest.raises(SourceError, match=rf"lacks {first.name}, {last.name}\. Download the missing files"):
        integrity.check_model_folder(sharded)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1], ids=str)
def test_a_truncated_file_is_detected(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:keep])

    with pytest.raises(SourceError, match=rf"model.safetensors of {len(content[:keep])} bytes is truncated or damaged"):
        integrity.check_model_folder(folder)


def test_a_truncated_shard_is_detected(sharded):
    path = shards_of(sharded)[1]
    path.write_bytes(path.read_bytes()[:-7])

    with pytest.raises(SourceError, match=rf"{path.name} of \d+ bytes is truncated or damaged: .* Download it again\."):
        integrity.check_model_folder(sharded)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content + b"more",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
        lambda content: content.replace(b'"data_offsets":[0,', b'"data_offsets":[1,', 1),
        lambda content: content.replace(b'"F32"', b'"F16"', 1),
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=["longer", "length", "json", "offsets", "dtype", "lfs"],
)
def test_a_damaged_header_is_detected(folder, spoil):
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(SourceError, match="is truncated or damaged"):
        integrity.check_model_folder(folder)


def test_an_index_of_other_shards_is_detected(sharded):
    path = shards_of(sharded)[0]
    tensors = load_file(path)
    missing = sorted(tensors)[0]
    del tensors[missing]
    save_file({**tensors, "other": torch.zeros(1)}, path, metadata={"format": "pt"})

    with pytest.raises(
        SourceError, match=rf"lists {missing} in {path.name}, which does not contain it.*download the model again"
    ):
        integrity.check_model_folder(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_a_broken_index_is_detected(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)

    with pytest.raises(SourceError, match=r"model.safetensors.index.json .*Download it again\."):
        integrity.check_model_folder(sharded)


def test_shards_without_an_index_are_rejected(sharded):
    (sharded / "model.safetensors.index.json").unlink()

    with pytest.raises(SourceError, match=r"has neither .* but model-00001-of-\d+.safetensors, model-00002"):
        integrity.check_model_folder(sharded)


def test_an_adapter_is_not_a_model(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")

    with pytest.raises(SourceError, match=r"but adapter_model.safetensors\."):
        integrity.check_model_folder(folder)


def test_pickle_files_are_rejected_unless_allowed(pickled):
    with pytest.raises(RecipeError, match=r"load.allow_pickle: .*only pickle files.*set load.allow_pickle: true"):
        integrity.check_model_folder(pickled)
    integrity.check_model_folder(pickled, allow_pickle=True)


def test_pickle_files_next_to_safetensors_are_ignored(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never read")

    integrity.check_model_folder(folder)


def test_a_legacy_pickle_file_is_accepted(pickled):
    weights = torch.load(pickled / "pytorch_model.bin")
    torch.save(weights, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    integrity.check_model_folder(pickled, allow_pickle=True)


def test_a_truncated_pickle_file_is_detected(pickled):
    path = pickled / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(SourceError, match=r"pytorch_model.bin of \d+ bytes is truncated or damaged"):
        integrity.check_model_folder(pickled, allow_pickle=True)


def test_missing_pickle_files_are_named(pickled):
    (pickled / "pytorch_model.bin").unlink()
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    with pytest.raises(SourceError, match=r"lists 2 shards, but .* lacks pytorch_model-1.bin, pytorch_model-2.bin"):
        integrity.check_model_folder(pickled, allow_pickle=True)


def test_custom_code_of_a_model_is_rejected_unless_trusted(folder, caplog):
    code = {"AutoModelForCausalLM": "modeling_own.OwnModel", "AutoTokenizer": ["tokenization_own.Own", None]}
    change(folder / "config.json", model_type="own", auto_map=code)

    with pytest.raises(RecipeError, match=r"load.trust_remote_code: .*modeling_own.OwnModel, .*'own'.*Read the code"):
        integrity.check_model_folder(folder)
    with caplog.at_level(logging.WARNING):
        integrity.check_model_folder(folder, trust_remote_code=True)
    assert "runs with your permissions: modeling_own.OwnModel, tokenization_own.Own" in caplog.text


def test_custom_code_of_a_known_architecture_is_ignored(folder, caplog):
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})

    integrity.check_model_folder(folder)

    assert not caplog.records
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__module__.startswith("transformers.")


def test_custom_code_of_a_tokenizer_is_rejected_unless_trusted(folder, caplog):
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    integrity.check_model_folder(folder)
    (folder / "tokenizer.json").rename(folder / "own.tiktoken")

    with pytest.raises(RecipeError, match=r"load.trust_remote_code: .*\(tokenization_own.Own\)"):
        integrity.check_model_folder(folder)
    integrity.check_model_folder(folder, trust_remote_code=True)
    assert "tokenization_own.Own" in caplog.text


def test_a_tokenizer_of_another_model_is_detected(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 5000, "content": "<other>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(
        SourceError, match=r"'<other>' has the id 5000, but the embedding has \d+ rows.*load.new_tokens"
    ):
        integrity.check_model_folder(folder)


def test_the_highest_id_may_be_the_last_row(folder):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    added = {str(rows - 1): {"content": "<last>"}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=added)

    integrity.check_model_folder(folder)

    change(folder / "tokenizer_config.json", added_tokens_decoder={str(rows): {"content": "<beyond>"}})
    with pytest.raises(SourceError, match=rf"'<beyond>' has the id {rows}, but the embedding has {rows} rows"):
        integrity.check_model_folder(folder)


def test_rows_are_counted_in_the_weights_rather_than_the_config(folder):
    change(folder / "config.json", vocab_size=10)

    integrity.check_model_folder(folder)


def test_rows_of_pickle_files_come_from_the_config(pickled):
    change(pickled / "config.json", vocab_size=10)

    with pytest.raises(SourceError, match="the embedding has 10 rows"):
        integrity.check_model_folder(pickled, allow_pickle=True)


def test_a_missing_tokenizer_is_detected(folder):
    (folder / "tokenizer.json").unlink()

    with pytest.raises(SourceError, match=r"has no tokenizer \(tokenizer.json, vocab.json or tokenizer.model\)"):
        integrity.check_model_folder(folder)


def test_a_sentencepiece_file_is_a_tokenizer(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")

    integrity.check_model_folder(folder)


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("config.json", "7"), ("tokenizer.json", "{")])
def test_invalid_json_is_detected(folder, name, content):
    (folder / name).write_text(content)

    with pytest.raises(SourceError, match=rf"{name} .*Download it again\."):
        integrity.check_model_folder(folder)


def test_a_folder_without_a_config_is_rejected(folder):
    (folder / "config.json").unlink()

    with pytest.raises(SourceError, match=r"has no config.json\. Give a folder"):
        integrity.check_model_folder(folder)


def test_weights_are_not_read(tmp_path, monkeypatch):
    folder = tiny.build_model(tmp_path / "model")
    monkeypatch.setattr(torch, "frombuffer", None)
    monkeypatch.setattr(torch, "load", None)

    integrity.check_model_folder(folder)


def test_an_adapter_next_to_the_weights_is_rejected(folder):
    (folder / "adapter_config.json").write_text("{}")

    with pytest.raises(SourceError, match=r"contains an adapter \(adapter_config.json\) next to the weights"):
        integrity.check_model_folder(folder)


def test_a_local_folder_cannot_replace_code_from_the_hub(folder, tmp_path, monkeypatch):
    change(folder / "config.json", auto_map={"AutoConfig": "team/code--configuration_x.XConfig"})
    monkeypatch.chdir(tmp_path)
    integrity.check_model_folder(folder, trust_remote_code=True)
    (tmp_path / "team" / "code").mkdir(parents=True)

    with pytest.raises(SourceError, match=r"the Hub repository team/code, but the local folder .*/team/code would"):
        integrity.check_model_folder(folder, trust_remote_code=True)
    integrity.check_model_folder(folder)
