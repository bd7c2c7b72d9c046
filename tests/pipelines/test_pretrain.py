"""The pre-training pipeline: texts in, a model evaluated by the log-likelihood of held-out texts out."""

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


def test_the_model_is_promoted_for_a_higher_log_likelihood_of_held_out_texts(first):
    metrics = first.report.metrics()

    assert set(metrics) == {"log_likelihood", "exam_accuracy"}
    assert metrics["log_likelihood"]["gain"].low > 0.1
    assert "champion" in first.decision.aliases
    assert first.pipeline == "pretrain_pipeline"


def test_training_outputs_are_named_after_the_stage_and_data_outputs_are_not(first):
    """Stages share the cached outputs of data steps."""
    from zenml.client import Client

    steps = Client().get_pipeline_run(first.run_name).steps

    assert set(steps["train"].outputs) == {"pretrain_checkpoint", "pretrain_training_report"}
    assert set(steps["tokenize_pack"].outputs) == {"rows"}


def test_a_recipe_of_another_stage_is_an_error_that_names_its_pipeline(first, run):
    with pytest.raises(RunError, match="stage: sft is not run by pretrain_pipeline. Run sft_pipeline"):
        run("pretrain_pipeline")
