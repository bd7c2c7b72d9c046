"""Merging: byte-identical to peft's merge without loading the model, and divergence with bounded memory."""

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
    """Save an adapter whose weights differ from its initialization."""
    tokenizer, base_model = find(base)
    family = families[method.type]
    model = family.attach(load_for_merge(base_model, tokenizer, load or step(), "sdpa"), method)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += spread * torch.randn_like(parameter)
    family.save(model, folder)
    return Checkpoint(folder, "adapter", {"method": {"type": method.type}})


def rows_of(tokenizer):
    rows = Dataset.from_list(
        [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(8)], schema.EXAMPLE
    )
    split = Corpus({"train": rows, "validation": rows})
    return tokenize.tokenize_pack(split, tokenizer, TokenizeStepConfig(max_length=64))


def merge_checkpoint(checkpoint, base, *, load=None, **changes):
    tokenizer, base_model = find(base)
    config = MergeAdapterConfig(**{"max_kl": 1e-2, **changes})
    return merge.merge_adapter(checkpoint, base_model, tokenizer, rows_of(tokenizer), load or step(), config)


def by_peft(checkpoint, base, folder, dtype=torch.float32, max_shard_size="5GB"):
    """Merge with transformers and peft in memory; returns the files except the generation config."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, checkpoint.path).merge_and_unload(safe_merge=True).to(dtype)
    merged.save_pretrained(folder, max_shard_size=max_shard_size)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "generation_config.json"}


@pytest.fixture
def shard_merges(monkeypatch):
    """Record the results of `prepare_shard_merge`: None for a merge in memory."""
    results, prepare_shard_merge = [], shard_merge.prepare_shard_merge

    def prepare(*args):
        results.append(prepare_shard_merge(*args))
        return results[-1]

    monkeypatch.setattr(shard_merge, "prepare_shard_merge", prepare)
    return results


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["5GB", "50KB"])
def test_a_merge_by_shards_is_byte_identical_to_pefts_merge(tiny_model, tmp_path, home, shard_merges, dtype, size):
    checkpoint = adapter(tmp_path / "adapter", tiny_model)
    reference = by_peft(checkpoint, tiny_model, tmp_path / "peft", getattr(torch, dtype), size)

    result = merge_checkpoint(checkpoint, tiny_model, dtype=dtype, max_shard_size=size)

    assert all(shard_merges)
    assert {name: (result.path / name).read_bytes() for name in reference} == reference
    assert len(list(result.path.glob("model*.safetensors"))) == (1 if size == "5GB" else 3 if dtype == "float32" else 2)
    assert result.facts["kl"] < (1e-7 if dtype == "float32" else 1e-5)  # rounding of the log-probabilities


def test_the_adapter_is_added_to_a_16_bit_base_in_float32(tiny_model, tmp_path, home, shard_merges):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    checkpoint = adapter(tmp_path / "adapter", base)
    reference = by_peft(checkpoint, base, tmp_path / "peft")

    result = merge_checkpoint(checkpoint, base)

    assert all(shard_merges)
    assert (result.path / "model.safetensors").read_bytes() == reference["model.safetensors"]


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}], ids=str)
def test_scales_and_targets_match_peft(tiny_model, tmp_path, home, shard_merges, changes):
    checkpoint = adapter(tmp_path / "adapter", tiny_model, LORA.model_copy(update=changes))

    result = merge_checkpoint(checkpoint, tiny_model)

    assert all(shard_merges)
    assert (result.path / "model.safetensors").read_bytes() == by_peft(checkpoint, tiny_model, tmp_path / "peft")[
        "model.safetensors"
    ]


IN_MEMORY = {
    "dora": (LORA.model_copy(update={"use_dora": True}), step()),
    "modules_to_save": (LORA.model_copy(update={"modules_to_save": ["lm_head"]}), step()),
    "oft": (OFT, step()),
    "8 bits": (LORA, step(quantization=Bnb8bit(type="bnb_8bit"))),
}


@pytest.mark.parametrize("name", sorted(IN_MEMORY))
def test_other_adapters_than_plain_lora_are_merged_in_memory(tiny_model, tmp_path, home, shard_merges, name):
    method, load = IN_MEMORY[name]
    checkpoint = adapter(tmp_path / "adapter", tiny_model, method, load=load)

    result = merge_checkpoint(checkpoint, tiny_model, load=load, max_kl=1e-3)

    assert not any(shard_merges)
    assert result.facts["positions"] > 20
    assert result.facts["kl"] < 1e-3


def test_a_base_with_rope_scaling_is_merged_with_its_positions(tiny_model, tmp_path, home, shard_merges):
    load = step(rope_scaling=RopeScaling(rope_type="linear", factor=2.0), max_length=1024)
    checkpoint = adapter(tmp_path / "adapter", tiny_model, load=load)

    result = merge_checkpoint(checkpoint, tiny_model, load=load)

    assert all(shard_merges)
    assert json.loads((result.path / "config.json").read_text())["rope_parameters"]["factor"] == 2.0


def test_files_with_other_tensor_names_are_merged_in_memory(tiny_model, tmp_path, home, shard_merges):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    checkpoint = adapter(tmp_path / "adapter", base)

    result = merge_checkpoint(checkpoint, base)

    assert shard_merges == [None]
    assert result.facts["kl"] < 1e-6


def test_an_adapter_of_another_base_is_rejected(tiny_model, tmp_path, home):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=308
    )
    base = shutil.copytree(tiny_model, tmp_path / "base")
    LlamaForCausalLM(config).save_pretrained(base)

    with pytest.raises(RecipeError, match=r"trained on a different base model"):
        merge_checkpoint(adapter(tmp_path / "adapter", base), tiny_model)


def test_nan_and_infinity_are_rejected(tiny_model, tmp_path, home):
    checkpoint = adapter(tmp_path / "adapter", tiny_model)
    file = checkpoint.path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "lora_B" in name)][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises((VerificationError, ValueError), match=r"contains NaN or infinity|NaN"):
        merge_checkpoint(checkpoint, tiny_model)


# -- divergence


def distributions(seed, shape=(40, 50)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_divergence_in_chunks_equals_divergence_at_once(monkeypatch, tmp_path):
    before, after = distributions(0), distributions(1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    agreement = (before.argmax(-1) == after.argmax(-1)).float().mean()

    spooled = divergence.spool_to_disk(before.split(7), tmp_path)
    facts = divergence.compare_distributions(spooled, after.split(7))

    assert facts["kl"] == pytest.approx(float(kl), rel=1e-6)
    assert facts["greedy_agreement"] == pytest.approx(float(agreement))
    assert facts["positions"] == 40
    assert divergence.compare_distributions([], []) == {}


def test_the_number_of_logits_computed_and_compared_at_once_is_bounded(monkeypatch):
    monkeypatch.setattr(divergence, "MAX_BLOCK_LOGITS", 500)
    monkeypatch.setattr(divergence, "MAX_CHUNK_LOGITS", 150)
    logits, block_sizes = distributions(0), []

    def compute(positions):
        block_sizes.append(len(positions))
        return logits[positions]

    chunks = list(divergence.log_probabilities(compute, torch.arange(40), vocabulary_size=50))

    assert block_sizes == [10, 10, 10, 10]
    assert {len(chunk) for chunk in chunks} == {3, 1}
    torch.testing.assert_close(torch.cat(chunks), logits)


def test_a_model_too_large_for_the_accelerator_is_merged_on_the_cpu(tiny_model, tmp_path, home, monkeypatch):
    """The meta device simulates an accelerator: a model on it cannot be merged."""
    checkpoint = adapter(tmp_path / "adapter", tiny_model, OFT)
    monkeypatch.setattr(device, "device_type", lambda: "meta")
    monkeypatch.setattr(device, "has_memory_for", lambda num_bytes: num_bytes < 4 * 20_000)

    result = merge_checkpoint(checkpoint, tiny_model)

    assert result.facts["kl"] < 1e-6
    monkeypatch.undo()
    load_model(result.path)
