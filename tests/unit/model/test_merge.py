"""Merging: the bytes of peft's own merge, without holding the model; divergence without holding distributions."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests import tiny
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import Bnb8bit, LoadStepConfig, RopeScaling
from tuneline.config.sections.method import LoraMethod, OftMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import MergeAdapterConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.errors import RecipeError, VerificationError
from tuneline.model import device, divergence, merge, shard_merge, source
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_for_merge, load_model
from tuneline.model.methods import families

LORA = LoraMethod(type="lora", r=4, lora_alpha=8)
OFT = OftMethod(type="oft", oft_block_size=8)


def step(**changes):
    return LoadStepConfig(**{"dtype": "float32", "max_length": 64, **changes})


def find(folder):
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=folder))
    return tokenizer, base_model


def adapter(folder, base, method=LORA, *, load=None, spread=0.1):
    """Save an adapter whose weights are not those that it starts with."""
    tokenizer, base_model = find(base)
    family = families[method.type]
    model = family.attach(load_for_merge(base_model, tokenizer, load or step(), "sdpa"), method)
    torch.manual_seed(1)
    for name, part in model.named_parameters():
        if part.requires_grad and "lora_A" not in name:
            part.data += spread * torch.randn_like(part)
    family.save(model, folder)
    return Checkpoint(folder, "adapter", {"method": {"type": method.type}})


def rows_of(tokenizer):
    rows = Dataset.from_list(
        [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(8)], schema.EXAMPLE
    )
    split = Corpus({"train": rows, "validation": rows})
    return tokenize.tokenize_pack(split, tokenizer, TokenizeStepConfig(max_length=64))


def merged(checkpoint, base, *, load=None, **changes):
    tokenizer, base_model = find(base)
    config = MergeAdapterConfig(**{"max_kl": 1e-2, **changes})
    return merge.merge_adapter(checkpoint, base_model, tokenizer, rows_of(tokenizer), load or step(), config)


def by_peft(checkpoint, base, folder, dtype=torch.float32, max_shard_size="5GB"):
    """What transformers and peft make of it, model in memory; the files beside the tokenizer's."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = PeftModel.from_pretrained(model, checkpoint.path).merge_and_unload(safe_merge=True).to(dtype)
    whole.save_pretrained(folder, max_shard_size=max_shard_size)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "generation_config.json"}


@pytest.fixture
def watched(monkeypatch):
    """Which way merges took: True for shard by shard."""
    ways, plain = [], shard_merge.prepare_shard_merge

    def prepare(*given):
        ways.append(plain(*given))
        return ways[-1]

    monkeypatch.setattr(shard_merge, "prepare_shard_merge", prepare)
    return ways


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["5GB", "50KB"])
def test_shard_by_shard_gives_the_bytes_of_pefts_merge(tiny_model, tmp_path, home, watched, dtype, size):
    checkpoint = adapter(tmp_path / "adapter", tiny_model)
    reference = by_peft(checkpoint, tiny_model, tmp_path / "peft", getattr(torch, dtype), size)

    made = merged(checkpoint, tiny_model, dtype=dtype, max_shard_size=size)

    assert all(watched)
    assert {name: (made.path / name).read_bytes() for name in reference} == reference
    assert len(list(made.path.glob("model*.safetensors"))) == (1 if size == "5GB" else 3 if dtype == "float32" else 2)
    assert made.facts["kl"] < (1e-8 if dtype == "float32" else 1e-5)


def test_a_base_in_sixteen_bits_gets_the_adapter_in_float32(tiny_model, tmp_path, home, watched):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    checkpoint = adapter(tmp_path / "adapter", base)
    reference = by_peft(checkpoint, base, tmp_path / "peft")

    made = merged(checkpoint, base)

    assert all(watched)
    assert (made.path / "model.safetensors").read_bytes() == reference["model.safetensors"]


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}], ids=str)
def test_scales_and_targets_are_pefts(tiny_model, tmp_path, home, watched, changes):
    checkpoint = adapter(tmp_path / "adapter", tiny_model, LORA.model_copy(update=changes))

    made = merged(checkpoint, tiny_model)

    assert all(watched)
    assert (made.path / "model.safetensors").read_bytes() == by_peft(checkpoint, tiny_model, tmp_path / "peft")[
        "model.safetensors"
    ]


WHOLE = {
    "dora": (LORA.model_copy(update={"use_dora": True}), step()),
    "modules_to_save": (LORA.model_copy(update={"modules_to_save": ["lm_head"]}), step()),
    "oft": (OFT, step()),
    "8 bits": (LORA, step(quantization=Bnb8bit(type="bnb_8bit"))),
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_is_more_than_two_factors_is_merged_whole(tiny_model, tmp_path, home, watched, name):
    method, load = WHOLE[name]
    checkpoint = adapter(tmp_path / "adapter", tiny_model, method, load=load)

    made = merged(checkpoint, tiny_model, load=load, max_kl=1e-3)

    assert not any(watched)
    assert made.facts["positions"] > 20
    assert made.facts["kl"] < 1e-3


def test_a_stretched_base_is_merged_with_its_positions(tiny_model, tmp_path, home, watched):
    load = step(rope_scaling=RopeScaling(rope_type="linear", factor=2.0), max_length=1024)
    checkpoint = adapter(tmp_path / "adapter", tiny_model, load=load)

    made = merged(checkpoint, tiny_model, load=load)

    assert all(watched)
    assert json.loads((made.path / "config.json").read_text())["rope_parameters"]["factor"] == 2.0


def test_files_with_other_tensors_than_the_model_are_read_by_transformers(tiny_model, tmp_path, home, watched):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    renamed = {name.removeprefix("model."): part for name, part in tensors.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    checkpoint = adapter(tmp_path / "adapter", base)

    made = merged(checkpoint, base)

    assert watched == [None]
    assert made.facts["kl"] < 1e-6


def test_an_adapter_of_another_base_is_refused(tiny_model, tmp_path, home):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=308
    )
    base = shutil.copytree(tiny_model, tmp_path / "base")
    LlamaForCausalLM(config).save_pretrained(base)

    with pytest.raises(RecipeError, match=r"made for another base model"):
        merged(adapter(tmp_path / "adapter", base), tiny_model)


def test_values_that_are_no_numbers_are_refused(tiny_model, tmp_path, home):
    checkpoint = adapter(tmp_path / "adapter", tiny_model)
    file = checkpoint.path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "lora_B" in name)][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises((VerificationError, ValueError), match=r"no numbers|NaN"):
        merged(checkpoint, tiny_model)


# -- divergence


def distributions(seed, shape=(40, 50)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_divergence_in_chunks_is_that_of_the_whole(monkeypatch, tmp_path):
    before, after = distributions(0), distributions(1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    same = (before.argmax(-1) == after.argmax(-1)).float().mean()

    waiting = divergence.spool_to_disk(before.split(7), tmp_path)
    facts = divergence.compare_distributions(waiting, after.split(7))

    assert facts["kl"] == pytest.approx(float(kl), rel=1e-6)
    assert facts["greedy_agreement"] == pytest.approx(float(same))
    assert facts["positions"] == 40
    assert divergence.compare_distributions([], []) == {}


def test_no_more_positions_are_computed_or_compared_at_once_than_fit(monkeypatch):
    monkeypatch.setattr(divergence, "MAX_BLOCK_LOGITS", 500)
    monkeypatch.setattr(divergence, "MAX_CHUNK_LOGITS", 150)
    logits, asked = distributions(0), []

    def compute(positions):
        asked.append(len(positions))
        return logits[positions]

    chunks = list(divergence.log_probabilities(compute, torch.arange(40), vocabulary=50))

    assert asked == [10, 10, 10, 10]
    assert {len(chunk) for chunk in chunks} == {3, 1}
    torch.testing.assert_close(torch.cat(chunks), logits)


def test_a_model_that_an_accelerator_has_no_room_for_is_merged_on_the_cpu(tiny_model, tmp_path, home, monkeypatch):
    """The meta device stands for an accelerator: what is loaded onto it cannot be merged."""
    checkpoint = adapter(tmp_path / "adapter", tiny_model, OFT)
    monkeypatch.setattr(device, "device_type", lambda: "meta")
    monkeypatch.setattr(device, "has_memory_for", lambda num_bytes: num_bytes < 4 * 20_000)

    made = merged(checkpoint, tiny_model)

    assert made.facts["kl"] < 1e-6
    monkeypatch.undo()
    load_model(made.path)
