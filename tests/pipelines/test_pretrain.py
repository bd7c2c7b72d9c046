"""Pre-training through the whole line: texts in, a model judged by the likelihood of held-out texts out."""

import pytest

from tests import tiny
from tuneline.zenml_integration.strict_pipeline import RunError

pytestmark = pytest.mark.zenml

TEXTS = [{"name": "texts", "path": "data/texts.jsonl", "format": "text"}]
GATE = {"model_name": "texts", "gate": {"metric": "log_likelihood"}}
TRAIN = {"learning_rate": 1e-2, "max_steps": 12}


@pytest.fixture(scope="module")
def first(project, run):
    tiny.write_texts(project / "data" / "texts.jsonl")
    return run(
        "pretrain_pipeline", stage="pretrain", sources=TEXTS, registry=GATE, train=TRAIN, method={"type": "full"}
    )


def test_the_model_is_promoted_for_making_held_out_texts_likelier(first):
    parts = first.report.metrics()

    assert set(parts) == {"log_likelihood", "exam_accuracy"}
    assert parts["log_likelihood"]["gain"].low > 0.1
    assert "champion" in first.decision.aliases
    assert first.pipeline == "pretrain_pipeline"


def test_what_a_stage_makes_carries_its_name_and_data_do_not(first):
    """Data steps are shared by stages: rows that one has made are taken from the cache by another."""
    from zenml.client import Client

    steps = Client().get_pipeline_run(first.run_name).steps

    assert set(steps["train"].outputs) == {"pretrain_checkpoint", "pretrain_training_report"}
    assert set(steps["tokenize_pack"].outputs) == {"rows"}


def test_a_recipe_of_another_stage_is_refused_by_name(first, run):
    with pytest.raises(RunError, match="stage: sft is not run by pretrain_pipeline. Run sft_pipeline"):
        run("pretrain_pipeline")
