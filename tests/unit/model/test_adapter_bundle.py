"""Adapter bundles: adapters that cannot be merged are stored with their base model in a self-contained folder."""

import shutil

import pytest
from datasets import Dataset

from tests import tiny
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import BottleneckMethod, PrefixMethod, PromptMethod, PTuningMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import MergeAdapterConfig, SFTConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.benchmarks import multiple_choice
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.evaluation.generation import generate
from tuneline.evaluation.tasks import letter_logprobs
from tuneline.model import adapter_bundle, merge, source
from tuneline.model.load import load_model
from tuneline.train import training_run

METHODS = [
    PrefixMethod(type="prefix", num_virtual_tokens=4),
    PromptMethod(type="prompt", num_virtual_tokens=4),
    PTuningMethod(type="p_tuning", num_virtual_tokens=4, encoder_hidden_size=16),
    BottleneckMethod(type="bottleneck", bottleneck_size=8),
]
LOAD = LoadStepConfig(dtype="float32", max_length=64)


@pytest.fixture(params=METHODS, ids=lambda method: method.type)
def bundle(request, tiny_model, tmp_path, home):
    """A bundle, the folder it was moved to, its loss after training, and the rows."""
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
    rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(12)]
    split = {
        "train": Dataset.from_list(rows[:8], features=schema.EXAMPLE),
        "validation": Dataset.from_list(rows[8:], features=schema.EXAMPLE),
    }
    tokenized = tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=64, packing=False))
    config = SFTConfig(max_steps=3, learning_rate=1e-2)
    checkpoint, report = training_run.train(tokenized, base_model, tokenizer, LOAD, request.param, config)
    model = merge.merge_adapter(checkpoint, base_model, tokenizer, tokenized, LOAD, MergeAdapterConfig())
    moved = tmp_path / "elsewhere"
    shutil.move(model.path, moved)
    return model, moved, report.summary["validation_loss"], tokenized


def test_a_bundle_is_an_adapter_with_the_reason(bundle):
    model, folder, _, _ = bundle

    assert model.kind == "adapter"
    assert "cannot be merged" in model.facts["reason"]
    assert adapter_bundle.is_adapter_bundle(folder)
    assert (folder / "base_model" / "config.json").is_file()


def test_a_bundle_reproduces_the_loss_of_its_training(bundle):
    model, folder, loss, rows = bundle
    method = model.identity["method"]["type"]

    assert training_run.mean_loss(load_model(folder), rows, "validation", method) == pytest.approx(loss, rel=1e-4)


def test_the_base_weights_are_hard_links(bundle, tiny_model):
    _, folder, _, _ = bundle
    weights = [folder / "base_model" / "model.safetensors", tiny_model / "model.safetensors"]

    if folder.stat().st_dev == tiny_model.stat().st_dev:
        assert weights[0].samefile(weights[1])


def test_a_bundle_generates_answers_and_letter_probabilities(bundle, tmp_path):
    _, folder, _, _ = bundle
    model, tokenizer = load_model(folder).eval(), load_tokenizer_from(folder)
    prompts = ["<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user\nSay 2"]

    batched = generate.generate_answers(model, tokenizer, prompts, max_new_tokens=4, batch_size=2)
    separate = [
        generate.generate_answers(model, tokenizer, [prompt], max_new_tokens=4, batch_size=1)[0] for prompt in prompts
    ]
    questions = [f"{multiple_choice.LETTERS}. one and {i}\nAnswer:" for i in ("two", "three or four")]
    letters = letter_logprobs.letter_logprobs(model, tokenizer, questions)
    separate_letters = [letter_logprobs.letter_logprobs(model, tokenizer, [question])[0] for question in questions]

    assert batched == separate
    assert letters.tolist() == [pytest.approx(row.tolist(), abs=1e-4) for row in separate_letters]


def test_no_file_contains_local_paths(bundle, tiny_model):
    _, folder, _, _ = bundle
    texts = [path.read_text() for path in folder.rglob("*.json")]

    assert not any(str(tiny_model) in text or str(folder.parent) in text for text in texts)
