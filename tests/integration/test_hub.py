"""A base model and a dataset from the Hub, from a revision to a promoted version; the Hub is a local server."""

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

OLD_COMMIT, NEW_COMMIT = "b" * 40, "c" * 40


@pytest.fixture
def hub(project, tmp_path, monkeypatch):
    """A local hub, with an empty local cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "files"))
    with data_hub.serve(monkeypatch) as server:
        yield server


def files_of(folder):
    """Return the files of a model folder as a hub stores them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def description(name):
    """Return the description of a champion in the registry."""
    import mlflow

    return mlflow.MlflowClient().get_model_version_by_alias(name, "champion").description


def executed_steps(outcome):
    """Return the steps of a run that were not cached, except `resolve` and `register`."""
    return {step.name for step in outcome.steps if step.status != "cached"} - {"resolve", "register"}


def test_a_hub_model_is_trained_from_the_current_commit_of_its_revision(hub, project, tmp_path, run):
    from zenml.client import Client

    tiny.write_texts(project / "data" / "texts.jsonl", 60)
    folders = {name: tiny.build_model(tmp_path / name, seed) for seed, name in enumerate(("main", "early", "late"), 1)}
    hub.models["team/model"] = files_of(folders["main"])
    hub.tag("team/model", "release", OLD_COMMIT, files_of(folders["early"]))
    huggingface_hub.snapshot_download("team/model", revision="release")
    hub.tag("team/model", "release", NEW_COMMIT, files_of(folders["late"]))
    changes = {**TEXTS, "method": LORA, "train": TRAIN, "registry": {"model_name": "of-the-hub"}}
    model = {"type": "hub", "repo_id": "team/model"}

    outcome = run("pretrain_pipeline", **changes, model={**model, "revision": "release"})

    merged, tokenizer = reference.load(promoted(outcome, "of-the-hub"))
    base = AutoModelForCausalLM.from_pretrained(folders["late"], dtype=torch.float32).eval()
    for score in outcome.report.base:
        value = reference.text_log_likelihood(base, tokenizer, score.prompt)
        assert score.metrics["log_likelihood"] == pytest.approx(value, abs=2e-4)
    adapter = Client().get_pipeline_run(outcome.run_name).steps["train"].outputs["pretrain_checkpoint"][0].uri
    unmerged = PeftModel.from_pretrained(base, f"{adapter}/files").eval()
    ids = torch.tensor([tokenizer(tiny.TEXT[:200])["input_ids"]])
    assert (unmerged(ids).logits - merged(ids).logits).abs().max() < 1e-4
    assert f"(hub team/model@{NEW_COMMIT})" in description("of-the-hub")

    hub.down = True
    again = run("pretrain_pipeline", **changes, model={**model, "revision": NEW_COMMIT})
    assert executed_steps(again) == set()
    assert again.decision.version == outcome.decision.version


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "max_rows": len(CHATS)}])
def test_a_hub_data_set_is_trained_at_its_revision(streaming, hub, project, tmp_path, run):
    name = "streamed" if streaming else "copied"
    path = tmp_path / "train.parquet"
    Dataset.from_list([FORMATS["alpaca"](chat) for chat in CHATS]).to_parquet(path)
    wrong = tiny.write_jsonl(tmp_path / "wrong.jsonl", tiny.alpaca_rows(len(CHATS)))
    hub.repositories["team/rows"] = {"train.jsonl": wrong.read_bytes()}
    hub.tag("team/rows", "v2", NEW_COMMIT, {"data/train-00000-of-00001.parquet": path.read_bytes()})
    source = {"name": "rows", "hub": "team/rows", "revision": "v2", "format": "alpaca", **streaming}
    changes = {"exams": [], "method": FULL, "train": {**TRAIN, "max_steps": 60}, "evaluate": {"max_new_tokens": 16}}

    outcome = run(sources=[source], **changes, registry={"model_name": name})

    folder = promoted(outcome, name)
    check_rows(outcome, folder)
    model, tokenizer = reference.load(folder)
    assert reference.generate(model, tokenizer, [{"role": "user", "content": "What is 7?"}], 16).strip() == FOX
    assert f"hub team/rows@{NEW_COMMIT} split train" in description(name)
    assert "| mit |" in description(name)

    hub.down = True
    again = run(sources=[{**source, "revision": NEW_COMMIT}], **changes, registry={"model_name": name})
    assert executed_steps(again) == set()
    assert training_examples(again) == training_examples(outcome)
