"""Training: correct loss, reproducible weights, and a merge that keeps the outputs."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from tests import tiny
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import Bnb4bit, LoadStepConfig
from tuneline.config.sections.method import FullMethod, LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import MergeAdapterConfig, SFTConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import VerificationError
from tuneline.model import merge, source
from tuneline.model.load import load_model
from tuneline.train import token_losses, training_run
from tuneline.train.collate import collate

LORA = LoraMethod(type="lora", r=4, lora_alpha=8)
LOAD = LoadStepConfig(dtype="float32", max_length=64)


@pytest.fixture
def parts(tiny_model, home):
    """Tokenizer and base model manifests, and packed rows."""
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
    rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(12)]
    split = {
        "train": Dataset.from_list(rows[:8], features=schema.EXAMPLE),
        "validation": Dataset.from_list(rows[8:], features=schema.EXAMPLE),
    }
    return tokenizer, base_model, tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=64))


def config(**changes):
    return SFTConfig(**{"max_steps": 3, "learning_rate": 1e-2, **changes})


def weights(checkpoint):
    return (checkpoint.path / "adapter_model.safetensors").read_bytes()


def test_the_loss_falls_and_is_reported_per_step(parts):
    tokenizer, base_model, rows = parts
    events = []

    _, report = training_run.train(
        rows,
        base_model,
        tokenizer,
        LOAD,
        LORA,
        config(max_steps=20),
        (lambda f, step: events.append((step, f["loss"])),),
    )

    assert report.summary["final_loss"] < report.summary["first_loss"] - 0.3
    marks = [labels[1:] for row in rows.splits["train"] for labels in [row["labels"]]]
    assert report.summary["trained_tokens"] / report.summary["tokens"] == pytest.approx(
        sum(label != -100 for row in marks for label in row) / sum(len(row) + 1 for row in marks), rel=0.2
    )
    assert events == [(int(entry["step"]), entry["loss"]) for entry in report.history]
    assert report.decisions["dtype"] == "torch.float32: set in the recipe"
    assert {"load_seconds", "train_seconds", "evaluate_seconds", "save_seconds", "flops"} <= set(report.summary)
    assert 0 < report.summary["mfu"] < 1
    assert {"learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"} <= set(report.history[0])


def test_training_twice_gives_bitwise_identical_weights(parts):
    tokenizer, base_model, rows = parts

    first, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())
    expected, digest = weights(first), first.content_hash()
    second, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())

    assert weights(second) == expected
    assert second.content_hash() == digest


def test_another_seed_gives_other_weights(parts):
    tokenizer, base_model, rows = parts

    results = [
        weights(training_run.train(rows, base_model, tokenizer, LOAD, LORA, config(seed=seed))[0]) for seed in (0, 1)
    ]

    assert results[0] != results[1]


def test_accumulation_weights_tokens_not_rows(parts):
    """Four micro-batches of one are one batch of four, however long the rows (DESIGN, obligation 6)."""
    tokenizer, base_model, rows = parts
    settings = {"learning_rate": 1e-3, "max_steps": 2}

    _, one = training_run.train(
        rows, base_model, tokenizer, LOAD, LORA, config(per_device_train_batch_size=4, **settings)
    )
    _, four = training_run.train(
        rows, base_model, tokenizer, LOAD, LORA, config(gradient_accumulation_steps=4, **settings)
    )

    assert [entry["loss"] for entry in one.history] == pytest.approx(
        [entry["loss"] for entry in four.history], rel=1e-5
    )
    grads = [[entry["grad_norm"] for entry in report.history] for report in (one, four)]
    assert grads[0] == pytest.approx(grads[1], rel=1e-4)


def test_the_packed_loss_equals_that_of_transformers_on_each_example_alone(parts):
    """The reference sees one example at a time, with its own loss over all positions."""
    _, base_model, rows = parts
    model = load_model(rows_dir(base_model), attention="segment").eval()

    loss = training_run.mean_loss(model, rows, "train")

    total, count = 0.0, 0
    for row in rows.splits["train"]:
        start = 0
        for length in row["lengths"]:
            ids, labels = (torch.tensor([row[name][start : start + length]]) for name in ("input_ids", "labels"))
            trained = int((labels[0, 1:] != -100).sum())
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=labels, use_cache=False).loss) * trained
            count, start = count + trained, start + length
    assert loss == pytest.approx(total / count, rel=1e-5)


def rows_dir(manifest):
    return manifest.only().paths()[0].parent


@settings(deadline=None, max_examples=25)
@given(shape=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3))
def test_collation_adds_no_padding_and_keeps_example_boundaries(shape):
    rows = [{"input_ids": [7] * sum(n), "labels": [7] * sum(n), "lengths": n} for n in shape]

    batch = collate(rows)

    lengths = [length for row in shape for length in row]
    assert batch["input_ids"].shape == (1, sum(lengths))
    assert batch["cu_seq_lens_q"].diff().tolist() == lengths
    assert batch["position_ids"][0].tolist() == [i for n in lengths for i in range(n)]


def test_the_merged_model_answers_like_the_adapter(parts):
    tokenizer, base_model, rows = parts
    checkpoint, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())

    model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, LOAD, MergeAdapterConfig())

    assert model.kind == "merged"
    assert model.facts["kl"] < 1e-6
    assert model.facts["greedy_agreement"] == 1.0
    assert load_tokenizer_from(model.path).chat_template == tiny.CHATML


def test_a_merge_that_changes_the_outputs_is_refused(parts, monkeypatch):
    tokenizer, base_model, rows = parts
    checkpoint, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())
    monkeypatch.setattr(merge, "compare_distributions", lambda before, after: {"kl": 0.5})

    with pytest.raises(VerificationError, match=r"KL divergence between adapter and merged model: 5.00e-01"):
        merge.merge_adapter(checkpoint, base_model, tokenizer, rows, LOAD, MergeAdapterConfig())


def test_a_fully_trained_model_is_passed_on_unmerged(parts):
    tokenizer, base_model, rows = parts
    checkpoint, report = training_run.train(rows, base_model, tokenizer, LOAD, FullMethod(type="full"), config())

    model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, LOAD, MergeAdapterConfig())

    assert model.kind == "full"
    assert report.summary["trainable_parameters"] == report.summary["parameters"]
    load_model(model.path)


def test_no_file_of_a_checkpoint_contains_a_path_of_this_machine(parts):
    tokenizer, base_model, rows = parts
    checkpoint, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())

    assert str(rows_dir(base_model)) not in (checkpoint.path / "adapter_config.json").read_text()


def test_a_nan_loss_stops_the_training(parts, monkeypatch):
    tokenizer, base_model, rows = parts
    monkeypatch.setattr(token_losses, "cross_entropy", lambda *a, **k: cross_entropy(*a, **k) * float("nan"))

    with pytest.raises(VerificationError, match="The loss is NaN at step 1"):
        training_run.train(rows, base_model, tokenizer, LOAD, LORA, config())


def test_a_4_bit_base_keeps_learning_after_an_evaluation(parts):
    """Elsewhere an evaluation rewrites the weights for a product that has no gradient, and training stops there."""
    tokenizer, base_model, rows = parts
    load = LOAD.model_copy(update={"quantization": Bnb4bit(type="bnb_4bit")})

    _, report = training_run.train(rows, base_model, tokenizer, load, LORA, config(max_steps=20, eval_steps=5))

    losses = [entry["loss"] for entry in report.history]
    assert losses[-1] < losses[5] < losses[0]
    assert [entry["step"] for entry in report.history if "validation_loss" in entry] == [5, 10, 15, 20]


def test_group_by_length_is_refused():
    """The key is refused by name: packed rows are all as long as they can be, and sorting would undo the shuffle."""
    with pytest.raises(ValidationError, match="group_by_length"):
        config(group_by_length=True)
