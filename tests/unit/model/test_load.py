"""Loading a base model: incomplete weights, adapters in order, new tokens, training from scratch."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests import tiny
from tuneline.config import existence
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.gate import GateConfig, PreconditionsConfig
from tuneline.config.sections.load import AdapterSource, LoadStepConfig, ModelLoadOptions
from tuneline.config.sections.method import BottleneckMethod, LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import MergeAdapterConfig, SFTConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenizer import new_tokens
from tuneline.errors import SourceError
from tuneline.model import merge, source
from tuneline.model.load import load_for_inference, load_for_training, load_model
from tuneline.tracking import evidence
from tuneline.train import training_run

LORA = LoraMethod(type="lora", r=4)
IDS = torch.tensor([[5, 9, 12, 40, 7]])


def step(**changes):
    return LoadStepConfig(**{"dtype": "float32", "max_length": 64, **changes})


def find(folder):
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=folder))
    return tokenizer, base_model


def rows_for(tokenizer):
    rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(12)]
    split = {
        "train": Dataset.from_list(rows[:8], features=schema.EXAMPLE),
        "validation": Dataset.from_list(rows[8:], features=schema.EXAMPLE),
    }
    return tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=64))


def train(folder, tmp_path, *, base_model=None, tokenizer=None, load=None, method=LORA, seed=0):
    """Train a few steps; each checkpoint is moved into a separate folder."""
    default_tokenizer, default_base = find(folder)
    tokenizer, base_model, load = tokenizer or default_tokenizer, base_model or default_base, load or step()
    config = SFTConfig(max_steps=3, learning_rate=1e-2, seed=seed)
    checkpoint, _ = training_run.train(rows_for(tokenizer), base_model, tokenizer, load, method, config)
    target = tmp_path / f"checkpoint-{seed}-{method.type}-{len(base_model.items)}"
    shutil.move(checkpoint.path, target)
    return checkpoint.__class__(target, checkpoint.kind, checkpoint.identity, checkpoint.facts)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, use_cache=False).logits


def test_missing_weights_are_rejected(tiny_model, tmp_path, home):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(SourceError, match=r"lacks model\.norm\.weight.*would be random"):
        load_model(folder)


def test_weights_of_another_shape_are_rejected(tiny_model, tmp_path, home):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))

    with pytest.raises((SourceError, RuntimeError), match=r"shape|mismatch"):
        load_model(folder)


def test_automatic_choices_are_reported(tiny_model, home):
    tokenizer, base_model = find(tiny_model)

    loaded = load_for_training(base_model, tokenizer, step(attention="auto"), trains_all=False, packed=True)

    assert loaded.attention == "segment"
    assert {"dtype", "attention"} <= set(loaded.decisions)


def test_adapters_are_merged_in_order_and_the_last_is_continued(tiny_model, tmp_path, home):
    first, second = (train(tiny_model, tmp_path, seed=seed) for seed in (1, 2))
    tokenizer, base_model = find(tiny_model)
    adapters = [AdapterSource(path=first.path), AdapterSource(path=second.path, use="continue")]
    stacked = source.add_adapters(base_model, adapters)

    both = load_for_inference(stacked, tokenizer, ModelLoadOptions())
    one = load_for_inference(source.add_adapters(base_model, adapters[:1]), tokenizer, ModelLoadOptions())
    loaded = load_for_training(stacked, tokenizer, step(uses=["merge", "continue"]), trains_all=False, packed=True)

    assert stacked.content_hash() != base_model.content_hash()
    torch.testing.assert_close(logits(loaded.model), logits(one))
    assert (logits(both) - logits(one)).abs().max() > 1e-3


def test_training_continues_from_an_adapter(tiny_model, tmp_path, home):
    first = train(tiny_model, tmp_path)
    tokenizer, base_model = find(tiny_model)
    stacked = source.add_adapters(base_model, [AdapterSource(path=first.path, use="continue")])
    rows = rows_for(tokenizer)
    loss_before = training_run.mean_loss(load_for_inference(stacked, tokenizer, ModelLoadOptions()), rows, "train")

    continued = train(tiny_model, tmp_path, base_model=stacked, load=step(uses=["continue"]), seed=3)
    model = merge.merge_adapter(continued, stacked, tokenizer, rows, step(uses=["continue"]), MergeAdapterConfig())

    assert training_run.mean_loss(load_model(model.path), rows, "train") < loss_before


def test_new_tokens_are_trained_and_saved(tiny_model, tmp_path, home):
    base_tokenizer, base_model = find(tiny_model)
    tokenizer = new_tokens.add_new_tokens(base_tokenizer, ["tuneline"], ["<|note|>"])

    checkpoint = train(tiny_model, tmp_path, tokenizer=tokenizer)
    rows = rows_for(tokenizer)
    model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, step(), MergeAdapterConfig())
    merged_tokenizer, merged_base = find(model.path)

    facts = evidence.collect(model, Corpus({}), rows, GateConfig(), max_kl=1.0, methods={})
    assert [
        check.name for check in evidence.check_preconditions(facts, PreconditionsConfig()) if not check.passed
    ] == []
    assert merged_tokenizer.content_hash() == tokenizer.content_hash()
    assert len(new_tokens.new_token_ids(source.manifest_folder(tokenizer))) == 2
    assert new_tokens.new_token_ids(source.manifest_folder(merged_tokenizer)) == ()
    torch.testing.assert_close(
        logits(load_for_inference(merged_base, merged_tokenizer, ModelLoadOptions())), logits(load_model(model.path))
    )


def test_training_from_scratch_needs_no_weights_and_is_reproducible(tiny_model, tmp_path, home):
    tiny.build_model(tmp_path / "trained", seed=1)
    folder = shutil.copytree(tmp_path / "trained", tmp_path / "config-only")
    (folder / "model.safetensors").unlink()
    options = ModelLoadOptions(train_from_scratch=True)
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=folder), options)
    _, trained, _ = source.resolve_model(DirectoryModel(type="directory", path=tmp_path / "trained"))

    first = load_for_training(base_model, tokenizer, step(train_from_scratch=True), trains_all=True, packed=True).model
    torch.manual_seed(7)
    second = load_for_inference(base_model, tokenizer, options)

    torch.testing.assert_close(logits(first), logits(second))
    assert (logits(first) - logits(load_model(tmp_path / "trained"))).abs().max() > 0.01
    assert base_model.content_hash() != trained.content_hash()


def test_a_merged_model_can_be_saved_in_shards(tiny_model, tmp_path, home):
    checkpoint = train(tiny_model, tmp_path)
    tokenizer, base_model = find(tiny_model)
    config = MergeAdapterConfig(max_shard_size="50KB", dtype="bfloat16", max_kl=1e-2)

    model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows_for(tokenizer), step(), config)

    assert (model.path / "model.safetensors.index.json").is_file()
    assert len(list(model.path.glob("model-*.safetensors"))) > 1
    assert load_model(model.path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_training_continues_from_a_bottleneck_adapter(tiny_model, tmp_path, home):
    method = BottleneckMethod(type="bottleneck", bottleneck_size=8)
    first = train(tiny_model, tmp_path, method=method)
    tokenizer, base_model = find(tiny_model)
    existence.check_adapter(first.path)
    stacked = source.add_adapters(base_model, [AdapterSource(path=first.path, use="continue")])
    rows = rows_for(tokenizer)
    loss_before = training_run.mean_loss(load_for_inference(stacked, tokenizer, ModelLoadOptions()), rows, "train")

    continued = train(tiny_model, tmp_path, base_model=stacked, load=step(uses=["continue"]), method=method)
    model = merge.merge_adapter(continued, stacked, tokenizer, rows, step(uses=["continue"]), MergeAdapterConfig())

    assert training_run.mean_loss(load_model(model.path), rows, "train") < loss_before
