"""Manual promotion and comparison of runs from stored scores and evidence."""

import json
from functools import partial

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.unit.tracking.test_evidence import make_evidence
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import RecipeError, TrackingError
from tuneline.evaluation.score_store import Score, to_table
from tuneline.tracking import compare, html_reports, promotion, registry, run_artifacts, runs
from tuneline.tracking.training_rows import TrainingRows

pytestmark = pytest.mark.usefixtures("own_server", "home")


@pytest.fixture
def make_version(tmp_path):
    """Register a version whose run stores evidence and scores of the base (all 0.5) and of the model."""

    def make(content, model_scores, trained_on=None, **evidence):
        sha256 = tiny.store_model(tmp_path / content, content)
        with mlflow.start_run(run_name=f"{tmp_path.name}-{content}") as run:
            runs.set_tags({"tuneline.kind": "pipeline"})
            for model, scores in (("base", dict.fromkeys(model_scores, 0.5)), ("model", model_scores)):
                rows = [
                    Score("held_out", item, f"asked {item}", "", f"{model} {content}", {"rougeL": value})
                    for item, value in scores.items()
                ]
                runs.log_file("evaluation", f"{model}.parquet", partial(pq.write_table, to_table(rows)))
            if evidence.pop("with_evidence", True):
                gate = GateConfig(num_resamples=1000)
                if trained_on:
                    run_artifacts.log_training_rows(trained_on)
                run_artifacts.log_evidence(make_evidence(**({"gate": gate, "contaminated": {}} | evidence)))
        return registry.register(tmp_path.name, sha256, (tmp_path / content).as_uri(), run.info.run_id, {})[0]

    return make


def scores(value, prefix="item", count=60):
    return {f"{prefix}-{i}": value + i / 1000 for i in range(count)}


def test_a_better_version_is_promoted_by_stored_scores(make_version):
    version = make_version("one", scores(0.6))

    decision = run_artifacts.promote(version.name, "1")

    assert decision.promoted
    stored = mlflow.artifacts.load_text(f"runs:/{version.run_id}/gate/decision.json")
    assert json.loads(stored)["sentence"] == decision.sentence


def test_a_report_on_different_items_is_refused(make_version):
    champion = make_version("one", scores(0.6))
    promotion.force(champion.name, "1", "first")
    make_version("two", scores(0.7, prefix="other"))

    with pytest.raises(
        TrackingError, match=r"has 60, champion version 1 has 60, and 0 are common. Run the candidate's recipe again"
    ):
        run_artifacts.promote(champion.name, "2")
    assert registry.get_champion(champion.name).version == "1"


def test_a_gate_metric_missing_from_the_report_is_reported(make_version):
    version = make_version("one", scores(0.6))
    config = GateConfig.model_validate({"targets": [{"metric": "mmlu_accuracy"}]})

    with pytest.raises(
        RecipeError, match=r"targets.0.metric: the report of the new model has no mmlu_accuracy; it has"
    ):
        run_artifacts.promote(version.name, "1", config)


def test_a_run_without_evidence_is_refused(make_version):
    version = make_version("one", scores(0.6), with_evidence=False)

    with pytest.raises(TrackingError, match=r"version 1 has no gate/evidence.json: .* Run its recipe again"):
        run_artifacts.promote(version.name, "1")


def test_contaminated_items_of_either_model_are_excluded(make_version):
    champion = make_version("one", scores(0.6), contaminated={"held_out": ["item-0"]})
    promotion.force(champion.name, "1", "first")
    make_version("two", scores(0.7), contaminated={"held_out": ["item-1", "item-2"]})

    decision = run_artifacts.promote(champion.name, "2")

    assert [finding.num_excluded for finding in decision.findings] == [2, 3]


def item_id(number):
    return f"{number:02x}" * 32


def training_rows(trained, held_out):
    """Training rows of a split by example; `trained` and `held_out` are numbers of examples."""
    ids, held_out_ids = (
        np.array([list(bytes.fromhex(item_id(i))) for i in numbers], np.uint8).reshape(-1, 32)
        for numbers in (sorted(trained), held_out)
    )
    short, keys = (np.ascontiguousarray(hashes[:, :16]).view("S16")[:, 0] for hashes in (ids, held_out_ids))
    return TrainingRows(short, short, held_out_ids, keys)


def memorized_scores(value, trained_items, count=160):
    """Scores that are 1 on the items that the model was trained on."""
    return {item_id(i): 1.0 if i in trained_items else value + i / 10_000 for i in range(count)}


def promote_against_champion_trained_on(make_version, numbers, **options):
    champion = make_version("one", memorized_scores(0.5, numbers), **options)
    promotion.force(champion.name, "1", "first")
    make_version("two", memorized_scores(0.6, ()), trained_on=training_rows(range(200, 250), range(160)))
    return run_artifacts.promote(champion.name, "2")


def test_a_better_model_does_not_lose_to_a_champion_trained_on_its_held_out_items(make_version):
    decision = promote_against_champion_trained_on(
        make_version, range(60), trained_on=training_rows(range(60), range(160, 200))
    )

    assert decision.promoted
    assert [(finding.num_items, finding.num_trained) for finding in decision.findings] == [(160, 0), (100, 60)]
    assert decision.findings[1].gain == pytest.approx(0.1)
    assert "; 60 left out because one of the two models was trained on them" in decision.sentence
    note = "rougeL against champion version 1: 60 left out because one of the two models was trained on them"
    assert f"- {note}" in decision.to_markdown()
    assert f"<li>{note}" in html_reports.decision_page(decision)


def test_a_champion_without_training_rows_is_compared_on_all_items_with_a_note(make_version):
    decision = promote_against_champion_trained_on(make_version, range(60))

    assert not decision.promoted, "it is better on the items that it was trained on"
    assert [finding.num_trained for finding in decision.findings] == [0, None]
    assert (
        "champion version 1 has no list of training rows, so items that it was trained on may still count"
        in decision.sentence
    )


def test_a_champion_trained_on_nearly_all_held_out_items_fails_a_precondition(make_version):
    decision = promote_against_champion_trained_on(
        make_version, range(156), trained_on=training_rows(range(156), range(160, 200))
    )

    assert not decision.promoted
    assert (
        "precondition clean_items: compared with champion version 1: Of the 160 items of rougeL, 156 were training"
        in (decision.sentence)
    )
    assert "Hold out the rows that the other model held out (merge: validation_fraction" in decision.sentence


def test_stored_scores_of_different_libraries_are_not_compared(make_version):
    libraries = [
        {"dtype": "float32", "device": "cpu", "libraries": f"transformers {version}"} for version in ("4", "5")
    ]
    champion = make_version("one", scores(0.6), scored_with=libraries[0])
    promotion.force(champion.name, "1", "first")
    make_version("two", scores(0.7), scored_with=libraries[1])
    make_version("three", scores(0.7), scored_with=libraries[0])

    with pytest.raises(TrackingError) as caught:
        run_artifacts.promote(champion.name, "2")

    assert str(caught.value) == (
        "Version 2 was scored with libraries transformers 5, and champion version 1 with transformers 4, so their "
        "stored scores cannot be compared. Run the recipe of version 2 again: it scores both models."
    )
    assert run_artifacts.promote(champion.name, "3").promoted


def test_a_failed_precondition_prevents_manual_promotion(make_version):
    version = make_version("one", scores(0.6), tokenizer_of_model="another")

    decision = run_artifacts.promote(version.name, "1")

    assert decision.sentence.startswith("Kept as challenger: precondition template_parity: ")


def test_a_comparison_counts_items_and_marks_significant_gains(make_version):
    first = make_version("one", scores(0.5))
    mixed = scores(0.5) | {"item-3": 0.9, "item-4": 0.1}
    make_version("two", mixed)
    make_version("three", scores(0.7))

    comparison = compare.compare([f"{first.name}@1", f"models:/{first.name}/2", f"{first.name}@3"])

    assert comparison.wins["rougeL"] == ["(first)", "1 won, 1 lost, 58 equal", "60 won, 0 lost, 0 equal"]
    assert [cell.endswith(" *") for cell in comparison.gains["rougeL"]] == [False, False, True]
    assert [row["scores"] for row in comparison.examples[:2]] == ["0.503 to 0.900", "0.504 to 0.100"]
    assert (comparison.examples[0]["first"], comparison.examples[0]["this"]) == ("model one", "model two")


def test_ten_items_that_all_gained_are_significant_among_twenty_other_metrics():
    """With a bootstrap of 5,000 resamples the p-value was 0.0084, not significant among six metrics."""
    items = [f"item-{i}" for i in range(10)]
    first = {f"metric{m}": dict.fromkeys(items, 0.4) for m in range(21)}
    other = first | {"metric0": dict.fromkeys(items, 0.9)}

    gains = compare._gains([first, other])

    assert gains["metric0"][1] == "+0.5000 [+0.5000, +0.5000] p=0.002 *"
    assert gains["metric1"][1].endswith("p=1")


def test_a_comparison_omits_equal_figures_and_last_values_of_histories(make_version):
    names = []
    for content, seconds in (("four", 1.5), ("five", 20000.0)):
        version = make_version(content, scores(0.5))
        metrics = {"training.seconds": seconds, "training.steps": 3.0, "learning_rate": seconds, "rougeL": 0.5}
        client = mlflow.MlflowClient()
        for name, value in {**metrics, "rougeL.low": 0.4, "rougeL.high": 0.6, "rougeL.base": 0.3}.items():
            client.log_metric(version.run_id, name, value)
        names.append(version.run_id)

    comparison = compare.compare(names)

    assert comparison.figures == {"training.seconds": ["1.5", "20,000"]}
    assert comparison.num_equal == 1
    assert comparison.metrics == {"rougeL": ["0.5000 [0.4000, 0.6000], base 0.3000"] * 2}
    assert [example["change"] for example in comparison.examples] == []
