"""Preference pipelines: DPO, KTO, reward modelling and PPO register evaluated models."""

import mlflow
import pytest

from tests import tiny
from tuneline.model import adapter_bundle, value_head
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

PAIRS = [{"name": "pairs", "path": "data/pairs.jsonl", "format": "preference"}]
LABELLED = [{"name": "labelled", "path": "data/labelled.jsonl", "format": "kto"}]


def recipe(stage, metric, sources, **train):
    return {
        "stage": stage,
        "sources": sources,
        "exams": [],
        "evaluate": {"max_items": None},
        "train": {"learning_rate": 1e-2, "max_steps": 30, "lr_scheduler_type": "constant", **train},
        "registry": {"model_name": f"tiny-{stage}", "gate": {"metric": metric}},
    }


@pytest.fixture(scope="module")
def dpo(project, run):
    tiny.write_preferences(project / "data")
    return run("dpo_pipeline", **recipe("dpo", "preference_accuracy", PAIRS, eval_steps=10))


def folder_of(name, version):
    """Return the folder with the files of a registered version."""
    tracker.connect()
    folder = tiny.Path(mlflow.MlflowClient().get_model_version(name, version).source.removeprefix("file://"))
    return folder / "files"


def test_dpo_raises_preference_accuracy_and_is_promoted(dpo):
    metrics = dpo.report.metrics()

    assert metrics["preference_accuracy"]["model"].mean > metrics["preference_accuracy"]["base"].mean
    assert "champion" in dpo.decision.aliases
    assert dpo.pipeline == "dpo_pipeline"


def test_rewards_and_validation_metrics_are_logged_as_curves(dpo, project):

    tracker.connect()
    client = mlflow.MlflowClient()
    run_id = client.get_model_version_by_alias("tiny-dpo", "champion").tags["tuneline.training_run"]

    steps = {name: [m.step for m in client.get_metric_history(run_id, name)] for name in CURVES}
    assert steps["rewards/accuracies"] == list(range(1, 31))
    assert steps["validation_loss"] == steps["validation_rewards/margins"] == [10, 20, 30]


CURVES = ("rewards/accuracies", "rewards/chosen", "validation_loss", "validation_rewards/margins")


def test_kto_raises_the_signed_log_likelihood(dpo, run):
    outcome = run("kto_pipeline", **recipe("kto", "signed_log_likelihood", LABELLED))

    assert outcome.report.metrics()["signed_log_likelihood"]["gain"].mean > 0


def test_a_reward_model_is_registered_as_adapter_head_and_base_model(dpo, run):

    outcome = run("rm_pipeline", **recipe("rm", "preference_accuracy", PAIRS, max_steps=60))
    assert {step.name for step in outcome.steps if step.status == "cached"} >= {"align_pairs", "merge", "tokenize_pack"}

    folder = folder_of("tiny-rm", outcome.decision.version)
    accuracy = outcome.report.metrics()["preference_accuracy"]["model"]
    assert accuracy.num_items >= 8, "prompts without answers in the training data"
    assert accuracy.mean > 0.9
    assert adapter_bundle.is_adapter_bundle(folder)
    assert (folder / value_head.HEAD_FILE).is_file()


def test_ppo_trains_with_the_registered_reward_model(dpo, project, run):
    chats = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(30)
    ]
    tiny.write_jsonl(project / "data" / "chats.jsonl", chats)
    reward_model = str(folder_of("tiny-rm", "1"))
    changes = recipe("ppo", "reward", [{"name": "chats", "path": "data/chats.jsonl", "format": "openai"}], max_steps=3)
    changes["train"] |= {"max_completion_length": 8, "per_device_train_batch_size": 4}
    changes["load"] = {"dtype": "float32", "adapters": [{"path": reward_model, "use": "reward"}]}

    outcome = run("ppo_pipeline", **changes)

    assert {"reward", "rougeL"} <= set(outcome.report.metrics())
    assert outcome.report.metrics()["reward"]["model"].num_items > 5
