"""A base model and a data set of the hub, from a revision to a promoted version; the hub is a thread."""

import datasets
import huggingface_hub
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import data_hub, tiny
from tests.integration import reference
from tests.integration.test_inputs import (
    CHATS,
    FORMATS,
    FOX,
    FULL,
    LORA,
    TEXTS,
    TRAIN,
    check_rows,
    promoted,
    training_examples,
)

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

EARLY, LATE = "b" * 40, "c" * 40


@pytest.fixture
def hub(project, tmp_path, monkeypatch):
    """A hub with an empty cache on this side."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "files"))
    with data_hub.serve(monkeypatch) as server:
        yield server


def files_of(folder):
    """Return the files of a model as a hub holds them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def description(name):
    """Return what the registry says of a champion."""
    import mlflow

    return mlflow.MlflowClient().get_model_version_by_alias(name, "champion").description


def steps_of(outcome):
    """Return the steps of a run that computed something."""
    return {step.name for step in outcome.steps if step.status != "cached"} - {"resolve", "register"}


def test_a_model_of_the_hub_is_trained_from_the_bytes_that_its_revision_has_now(hub, project, tmp_path, run):
    from zenml.client import Client

    tiny.write_texts(project / "data" / "texts.jsonl", 60)
    folders = {name: tiny.build_model(tmp_path / name, seed) for seed, name in enumerate(("main", "early", "late"), 1)}
    hub.models["team/model"] = files_of(folders["main"])
    hub.tag("team/model", "release", EARLY, files_of(folders["early"]))
    huggingface_hub.snapshot_download("team/model", revision="release")
    hub.tag("team/model", "release", LATE, files_of(folders["late"]))
    parts = {**TEXTS, "method": LORA, "train": TRAIN, "registry": {"model_name": "of-the-hub"}}
    model = {"type": "hub", "repo_id": "team/model"}

    outcome = run("pretrain_pipeline", **parts, model={**model, "revision": "release"})

    merged, tokenizer = reference.load(promoted(outcome, "of-the-hub"))
    base = AutoModelForCausalLM.from_pretrained(folders["late"], dtype=torch.float32).eval()
    for each in outcome.report.base:
        value = reference.text_log_likelihood(base, tokenizer, each.prompt)
        assert each.metrics["log_likelihood"] == pytest.approx(value, abs=2e-4)
    adapter = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs["pretrain_checkpoint"][0].uri
    other = PeftModel.from_pretrained(base, f"{adapter}/files").eval()
    ids = torch.tensor([tokenizer(tiny.TEXT[:200])["input_ids"]])
    assert (other(ids).logits - merged(ids).logits).abs().max() < 1e-4
    assert f"(hub team/model@{LATE})" in description("of-the-hub")

    hub.down = True
    again = run("pretrain_pipeline", **parts, model={**model, "revision": LATE})
    assert steps_of(again) == set()
    assert again.decision.version == outcome.decision.version


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "max_rows": len(CHATS)}])
def test_a_data_set_of_the_hub_is_trained_at_its_revision(streaming, hub, project, tmp_path, run):
    name = "streamed" if streaming else "copied"
    path = tmp_path / "train.parquet"
    Dataset.from_list([FORMATS["alpaca"](chat) for chat in CHATS]).to_parquet(path)
    wrong = tiny.write_jsonl(tmp_path / "wrong.jsonl", tiny.alpaca_rows(len(CHATS)))
    hub.repositories["team/rows"] = {"train.jsonl": wrong.read_bytes()}
    hub.tag("team/rows", "v2", LATE, {"data/train-00000-of-00001.parquet": path.read_bytes()})
    source = {"name": "rows", "hub": "team/rows", "revision": "v2", "format": "alpaca", **streaming}
    parts = {"exams": [], "method": FULL, "train": {**TRAIN, "max_steps": 60}, "evaluate": {"max_new_tokens": 16}}

    outcome = run(sources=[source], **parts, registry={"model_name": name})

    folder = promoted(outcome, name)
    check_rows(outcome, folder)
    model, tokenizer = reference.load(folder)
    assert reference.answer(model, tokenizer, [{"role": "user", "content": "What is 7?"}], 16).strip() == FOX
    assert f"hub team/rows@{LATE} split train" in description(name)
    assert "| mit |" in description(name)

    hub.down = True
    again = run(sources=[{**source, "revision": LATE}], **parts, registry={"model_name": name})
    assert steps_of(again) == set()
    assert training_examples(again) == training_examples(outcome)
