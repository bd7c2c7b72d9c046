"""The whole line on the tiny model: what is cached and what is not, and what a run leaves behind."""

import shutil
from pathlib import Path

import mlflow
import pytest

from steps import caching
from tests import tiny
from tuneline.errors import VerificationError
from tuneline.tracking import ledger, promotion, registry
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

ALL = {"ingest_first", "ingest_second", "align_first", "align_second", "merge", "tokenize_pack", "train"}
ALL |= {"merge_adapter", "evaluate"}
FROM_TRAIN = {"train", "merge_adapter", "evaluate"}


@pytest.fixture(scope="module")
def first(run):
    return run()


def test_a_first_run_runs_everything_and_registers_a_judged_model(first, ran):
    assert ran(first) == ALL
    assert first.decision.new
    assert first.decision.version == "1"
    assert "challenger" in first.decision.aliases
    assert "of the base model" in first.decision.sentence
    assert set(first.report.metrics()) == {"rouge1", "rouge2", "rougeL", "exam_accuracy"}


def test_a_second_run_is_cached_but_for_its_ends_and_registers_nothing(first, run, ran):
    second = run()

    assert ran(second) == set()
    assert not second.decision.new
    assert second.decision.version == first.decision.version


def test_training_again_to_equal_weights_is_the_same_version(first, run, ran):
    again = run(use_cache=False)

    assert ran(again) == ALL
    assert not again.decision.new
    assert again.decision.version == first.decision.version


def test_another_learning_rate_runs_from_train(first, run, ran):
    assert ran(run(train={**tiny.recipe()["train"], "learning_rate": 2e-3})) == FROM_TRAIN


def test_another_gate_runs_nothing_again(first, run, ran):
    assert ran(run(registry={"model_name": "tiny", "gate": {"min_gain": 0.5}})) == set()


def test_a_gate_of_targets_and_guards_asks_each_and_runs_nothing_again(first, run, ran):
    rich = {
        "targets": [{"metric": "rougeL", "min_effect": 0.5}, {"metric": "rouge1", "min_effect": 0.5}],
        "guards": [{"metric": "rouge2", "margin": 0.9}],
        "preconditions": {"min_coverage": 0.99},
    }
    outcome = run(registry={"model_name": "tiny", "gate": rich})

    assert ran(outcome) == set()
    base = [found for found in outcome.decision.findings if found.against == "the base model"]
    assert [(found.metric, found.role, found.passed) for found in base] == [
        ("rougeL", "target", False),
        ("rouge1", "target", False),
        ("rouge2", "guard", True),
    ]
    checks = {check.name: check.passed for check in outcome.decision.checks}
    assert checks == {"template_parity": True, "merge_fidelity": True, "mask_coverage": False}
    assert outcome.decision.sentence.startswith("Kept as challenger: precondition mask_coverage: ")


@pytest.fixture
def edited(project):
    """Append to a file for the time of a test."""
    kept = {}

    def edit(name, more):
        path = project / name
        kept[path] = path.read_bytes()
        path.write_bytes(kept[path] + more)

    yield edit
    for path, content in kept.items():
        path.write_bytes(content)


def test_a_changed_row_runs_its_own_data_set_and_what_follows(first, run, ran, edited):
    edited("data/first.jsonl", b'{"instruction": "New?", "input": "", "output": "Yes."}\n')

    names = ran(run())

    assert {"align_first", "merge", "tokenize_pack", *FROM_TRAIN} <= names
    assert "align_second" not in names, "the other data set's records are equal, so its examples are cached"


def test_a_blank_line_more_changes_no_example(first, run, ran, edited):
    edited("data/second.jsonl", b"\n")

    assert ran(run()) <= {"ingest_first", "ingest_second", "align_second"}


def test_a_changed_chat_template_runs_from_tokenize_pack(first, run, ran, edited):
    edited("model/chat_template.jinja", b"{# edited #}")

    assert ran(run()) == {"tokenize_pack", *FROM_TRAIN}


def test_one_changed_byte_of_the_weights_runs_from_train(first, run, ran, project):
    weights = project / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
    try:
        assert ran(run()) == FROM_TRAIN
    finally:
        weights.write_bytes(before)


def test_an_edited_exam_runs_evaluate(first, run, ran, edited):
    edited("exam/test/numbers.csv", b'"Which is a new one?",1,2,3,4,B\n')

    names = ran(run())

    assert "evaluate" in names
    assert names <= {"merge", "evaluate"}, "merge looks for the exam in the rows; the rows stay the same"


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A copy of the library that the cache keys read, to be edited."""
    copy = shutil.copytree(caching.LIBRARY, tmp_path / "tuneline")
    monkeypatch.setattr(caching, "LIBRARY", copy)
    return copy


def edit(path: Path):
    path.write_text(path.read_text() + "\n# edited\n")


def test_a_copy_of_the_library_elsewhere_shares_the_cache(first, run, ran, library):
    assert ran(run()) == set()


def test_an_edited_library_function_runs_its_steps_again(first, run, ran, library):
    edit(library / "data" / "tokenization" / "packing.py")

    assert ran(run()) == {"tokenize_pack"}, "equal rows came out, so what follows is cached"


def test_an_edited_module_that_is_imported_lazily_counts(first, run, ran, library):
    path = library / "data" / "mixture" / "merge.py"
    path.write_text(path.read_text() + "\ndef lazily():\n    from tuneline import statistics\n")
    run()
    edit(library / "statistics.py")

    assert "merge" in ran(run())


def test_an_edited_template_file_counts(first, run, ran, library):
    (library / "data" / "extra.jinja").write_text("{{ messages }}")

    assert "tokenize_pack" in ran(run())


def test_another_version_of_a_watched_library_runs_its_steps_again(first, run, ran, monkeypatch):
    real = caching.version
    monkeypatch.setattr(caching, "version", lambda name: "99" if name == "rouge_score" else real(name))

    assert ran(run()) == {"evaluate"}


def test_retraining_on_unchanged_data_is_cached_throughout(first, run, ran):
    again = run("retrain_pipeline")

    assert ran(again) == set()
    assert again.decision.version == first.decision.version


def test_retraining_on_changed_data_trains_and_judges(first, run, ran, edited):
    edited("data/second.jsonl", b'{"messages": [{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}\n')

    changed = run("retrain_pipeline")

    assert ran(changed) >= FROM_TRAIN
    assert changed.decision.findings


def test_a_run_with_cached_steps_is_complete_in_mlflow(first, run):
    from tuneline.tracking import compare

    second = run()
    tracker.connect()
    cached, original = (compare.find_run(each.run_name) for each in (second, first))

    assert cached.data.params == original.data.params
    assert set(cached.data.metrics) == set(original.data.metrics)
    assert cached.data.params["train.learning_rate"] == "0.001"
    client = mlflow.MlflowClient()
    assert [point.step for point in client.get_metric_history(cached.info.run_id, "loss")] == [1, 2]
    assert {each.dataset.name for each in cached.inputs.dataset_inputs} == {"first", "second"}
    child = client.get_run(cached.data.tags["tuneline.training_run"])
    parents = {run.info.run_id for run in compare.list_pipeline_runs()} - {cached.info.run_id}
    assert child.data.tags["mlflow.parentRunId"] in parents, "an earlier run trained what this one took from the cache"
    assert {"loss", "learning_rate", "tokens_per_second", "memory_bytes"} <= set(child.data.metrics)


def test_a_version_tells_its_lineage_and_is_not_copied(first, project):
    tracker.connect()

    version = registry.find_version("tiny", first.decision.version)

    assert version.folder() == first.model_folder
    assert project in version.folder().parents
    assert version.tags["zenml.run"] == first.run_name
    assert version.tags["tuneline.data"]


def test_prompts_of_a_server_are_proven_on_the_stored_rows_of_a_version(first):
    from tuneline.data.tokenizer.loader import load_tokenizer_from
    from tuneline.serve import parity

    tracker.connect()
    tokenizer = load_tokenizer_from(first.model_folder)
    rows = parity.stored_rows(registry.find_version("tiny", first.decision.version))

    report = parity.verify_template(tokenizer, rows)

    assert report.source == f"the training rows of tiny/{first.decision.version}"
    assert report.num_examples == report.num_prompts > 10
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")
    with pytest.raises(VerificationError, match="the server would send"):
        parity.verify_template(tokenizer, rows)


def test_the_version_loads_through_mlflow_and_through_plain_transformers(first):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tracker.connect()
    loaded = mlflow.pyfunc.load_model(f"models:/tiny/{first.decision.version}")
    answer = loaded.predict({"messages": [{"role": "user", "content": "Say 1"}]}, params={"max_tokens": 3})
    assert isinstance(answer, str)

    model = AutoModelForCausalLM.from_pretrained(first.model_folder)
    tokenizer = AutoTokenizer.from_pretrained(first.model_folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == tiny.CHATML


def test_every_move_of_an_alias_is_in_the_ledger(first):
    moves = ledger.entries("tiny")

    assert moves[0]["alias"] == "challenger"
    assert moves[0]["to"] == "1"
    assert ledger.verify() >= 1


def test_the_steps_are_those_that_the_recipe_names(project):
    from pipelines import sft_pipeline
    from tuneline.config import load

    recipe = load.load(project / "run.yaml").recipe
    wired = sft_pipeline.copy()
    wired.prepare(recipe=recipe)

    assert set(wired.invocations) == set(recipe.step_names())


def test_what_the_champion_was_trained_on_is_left_out_on_both_sides(first, run):
    """With a larger share, the champion's held-out rows are held out still, and rows that it was trained on besides."""
    tracker.connect()
    promotion.force("tiny", first.decision.version, "to have a champion")

    outcome = run(
        merge={"validation_fraction": 0.5},
        evaluate={**tiny.recipe()["evaluate"], "max_items": None},
        train={**tiny.recipe()["train"], "learning_rate": 3e-3},
    )

    base, champion = outcome.decision.findings
    assert (base.against, base.num_trained) == ("the base model", 0)
    assert champion.num_trained > 0
    assert champion.num_items == base.num_items - champion.num_trained >= 5
    assert (
        f"{champion.num_trained} left out because one of the two models was trained on them"
        in outcome.decision.to_markdown()
    )
    tracker.connect()  # the run has let go of it
    promotion.rollback("tiny")
