"""Formats, file types, quantizations and adapters, from a recipe to a promoted version."""

import gzip
import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

from tests import tiny
from tests.integration import reference
from tuneline.cli.app import app
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

COUNT = 60
FOX = "The quick brown fox answers."
CHATS = [[("user", f"What is {i}?"), ("assistant", FOX)] for i in range(COUNT)]
TRAIN = {"learning_rate": 1e-2, "max_steps": 40, "lr_scheduler_type": "constant"}
FULL = {"type": "full"}
LORA = {"type": "lora", "r": 4, "lora_alpha": 8}
TEXTS = {
    "stage": "pretrain",
    "sources": [{"name": "texts", "path": "data/texts.jsonl", "format": "text"}],
    "exams": [],
    "evaluate": {"max_items": None},
}
"""Recipe keys of pre-training on texts, evaluated by the log-likelihood of all held-out texts."""

QUIZ = """
def read(record):
    return {"messages": [{"role": role, "content": text} for role, text in record["turns"]]}
"""
FORMATS = {
    "alpaca": lambda chat: {"instruction": chat[0][1], "input": "", "output": chat[1][1]},
    "sharegpt": lambda chat: {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in chat]
    },
    "openai": lambda chat: {"messages": [{"role": role, "content": text} for role, text in chat]},
    "standard": lambda chat: {
        "_prompt": [{"role": "user", "content": chat[0][1]}],
        "_response": [{"role": "assistant", "content": chat[1][1]}],
        "_system": "",
        "_tools": "",
    },
    "quiz_format:read": lambda chat: {"turns": chat},
}


def as_json(path, rows):
    path.write_text(json.dumps(rows))


def as_gzip(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def as_csv(path, rows):
    pa.csv.write_csv(pa.Table.from_pylist(rows), path)


def as_parquet(path, rows):
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


def as_arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


KINDS = {"json": as_json, "jsonl.gz": as_gzip, "csv": as_csv, "parquet": as_parquet, "arrow": as_arrow}


@pytest.fixture
def preview(project):
    """Return a function that previews a recipe with `tuneline data preview --json`."""

    def run_preview(**changes):
        path = tiny.write_config(project / "preview.yaml", tiny.recipe(**changes))
        result = CliRunner().invoke(app, ["data", "preview", str(path), "--json"])
        assert result.exit_code == 0, result.output or result.exception
        return json.loads(result.stdout)

    return run_preview


def promoted(outcome, name):
    """Return the folder of the version that a run promoted to champion."""
    assert "champion" in outcome.decision.aliases, outcome.decision.sentence
    tracker.connect()
    return reference.champion_folder(name)


def training_examples(outcome):
    """Return ids and labels of each training example of a run, unpacked."""
    from zenml.client import Client

    step = Client().get_pipeline_run(outcome.run_name).steps["tokenize_pack"]
    rows = step.output.load().splits["train"]
    examples = []
    for row in rows:
        start = 0
        for length in row["lengths"]:
            part = slice(start, start + length)
            examples.append((row["input_ids"][part], row["labels"][part]))
            start += length
    return examples


def expected_example(tokenizer, chat):
    """Return ids and labels of a chat rendered by transformers; the answer and its stop token have labels."""
    messages = [{"role": role, "content": text} for role, text in chat]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    stop = len(prompt) + ids[len(prompt) :].index(tokenizer.eos_token_id) + 1
    return ids, [-100] * len(prompt) + ids[len(prompt) : stop] + [-100] * (len(ids) - stop)


def check_rows(outcome, folder):
    """Compare the training rows of a run with the same chats rendered by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    allowed = {json.dumps(expected_example(tokenizer, chat)) for chat in CHATS}
    examples = [json.dumps(example) for example in map(list, training_examples(outcome))]
    assert len(examples) > COUNT / 2
    assert set(examples) <= allowed
    assert len(set(examples)) == len(examples)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_rows_that_transformers_renders(name, project, run, preview):
    (project / "quiz_format.py").write_text(QUIZ)
    tiny.write_jsonl(project / "data" / "rows.jsonl", [FORMATS[name](chat) for chat in CHATS])
    changes = {"sources": [{"name": "rows", "path": "data/rows.jsonl", "format": name}], "exams": []}
    preview_rows = preview(**changes)

    outcome = run(**changes, method=FULL, train=TRAIN, registry={"model_name": "formats"})

    check_rows(outcome, promoted(outcome, "formats"))
    assert FOX in json.dumps(preview_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_type_gives_the_same_rows(kind, project, run, preview):
    path = project / "data" / f"rows.{kind}"
    KINDS[kind](path, [FORMATS["alpaca"](chat) for chat in CHATS])
    changes = {"sources": [{"name": "rows", "path": f"data/rows.{kind}", "format": "alpaca"}], "exams": []}
    preview(**changes)

    outcome = run(**changes, method=FULL, train=TRAIN, registry={"model_name": "kinds"})

    check_rows(outcome, promoted(outcome, "kinds"))


QUANTIZATIONS = {
    "nf4": {"type": "bnb_4bit", "bnb_4bit_quant_type": "nf4"},
    "nf4_single": {"type": "bnb_4bit", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    "fp4": {"type": "bnb_4bit", "bnb_4bit_quant_type": "fp4"},
    "int8": {"type": "bnb_8bit"},
    "torchao_int8": {"type": "torchao_int8"},
}


def quantized_base(folder, quantization):
    """Load a base model quantized by transformers and bitsandbytes, then dequantize it."""
    options = {key: value for key, value in quantization.items() if key != "type"}
    if quantization["type"] == "bnb_4bit":
        options |= {"bnb_4bit_use_double_quant": options.get("bnb_4bit_use_double_quant", True)}
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    return model.dequantize()


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_quantized_base_is_merged_dequantized_and_exported(name, project, run):
    from zenml.client import Client

    from pipelines import export_pipeline
    from tuneline.runner import start

    tiny.write_texts(project / "data" / "texts.jsonl", COUNT)
    outcome = run(
        "pretrain_pipeline",
        **TEXTS,
        load={"dtype": "float32", "quantization": QUANTIZATIONS[name]},
        train=TRAIN,
        registry={"model_name": f"quantized-{name}", "gate": {"metric": "log_likelihood"}},
    )
    merged, tokenizer = reference.load(promoted(outcome, f"quantized-{name}"))
    model = {"type": "registered", "name": f"quantized-{name}", "version": "champion"}
    path = tiny.write_config(project / "export.yaml", {"stage": "export", "model": model})
    exported, _ = reference.load(
        start.read_outcome(export_pipeline.with_options(config_path=str(path))()).delivery.folder
    )

    ids = torch.tensor([tokenizer(tiny.TEXT[:200])["input_ids"]])
    assert torch.equal(exported(ids).logits, merged(ids).logits)
    for score in outcome.report.model:
        value = reference.text_log_likelihood(merged, tokenizer, score.prompt)
        assert score.metrics["log_likelihood"] == pytest.approx(value, abs=2e-4)
    if name != "torchao_int8":
        adapter = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs["pretrain_checkpoint"][0].uri
        base = quantized_base(project / "model", QUANTIZATIONS[name])
        unmerged = PeftModel.from_pretrained(base, f"{adapter}/files").eval()
        assert (unmerged(ids).logits - merged(ids).logits).abs().max() < 1e-3


@pytest.mark.parametrize("key", ["new_tokens", "new_special_tokens"])
def test_new_tokens_are_learned_and_pass_the_gate(key, project, run):
    token = "<fox>"
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"{token} {FOX}"} for i in range(COUNT)]
    tiny.write_jsonl(project / "data" / "marked.jsonl", rows)
    outcome = run(
        sources=[{"name": "marked", "path": "data/marked.jsonl", "format": "alpaca"}],
        exams=[],
        load={"dtype": "float32", key: [token]},
        method={**LORA, "r": 16, "lora_alpha": 32},
        evaluate={"max_new_tokens": 16},
        train={**TRAIN, "max_steps": 120},
        registry={"model_name": f"tokens-{key}"},
    )

    model, tokenizer = reference.load(promoted(outcome, f"tokens-{key}"))
    (token_id,) = tokenizer(token, add_special_tokens=False)["input_ids"]
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer) > token_id
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output_ids = model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert int(output_ids[0, inputs["input_ids"].shape[1]]) == token_id


@pytest.mark.parametrize("use", ["merge", "continue"])
def test_training_starts_from_an_adapter(use, project, run):
    from zenml.client import Client

    tiny.write_jsonl(project / "data" / "rows.jsonl", [FORMATS["alpaca"](chat) for chat in CHATS])
    changes = {
        "sources": [{"name": "rows", "path": "data/rows.jsonl", "format": "alpaca"}],
        "exams": [],
        "method": LORA,
        "evaluate": {"max_new_tokens": 16},
    }
    first = run(**changes, train={**TRAIN, "max_steps": 1}, registry={"model_name": "first"})
    adapter = Client().get_pipeline_run(first.run_name).steps["train"].outputs["sft_checkpoint"][0].uri + "/files"
    load = {"dtype": "float32", "adapters": [{"path": adapter, "use": use}]}

    outcome = run(**changes, load=load, train={**TRAIN, "max_steps": 80}, registry={"model_name": f"from-{use}"})

    merged, tokenizer = reference.load(promoted(outcome, f"from-{use}"))
    second = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs["sft_checkpoint"][0].uri + "/files"
    base = AutoModelForCausalLM.from_pretrained(project / "model", dtype=torch.float32)
    if use == "merge":
        base = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    unmerged = PeftModel.from_pretrained(base, second).eval()
    ids = torch.tensor([tokenizer(tiny.TEXT[:200])["input_ids"]])
    assert (unmerged(ids).logits - merged(ids).logits).abs().max() < 1e-4
