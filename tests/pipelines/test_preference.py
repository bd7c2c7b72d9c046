"""Preference stages through the whole line: pairs in, a judged and registered model out."""

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
    """Where the files of a registered version lie."""
    tracker.connect()
    place = tiny.Path(mlflow.MlflowClient().get_model_version(name, version).source.removeprefix("file://"))
    return place / "files"


def test_dpo_is_promoted_for_preferring_what_people_prefer(dpo):
    parts = dpo.report.metrics()

    assert parts["preference_accuracy"]["model"].mean > parts["preference_accuracy"]["base"].mean
    assert "champion" in dpo.decision.aliases
    assert dpo.pipeline == "dpo_pipeline"


def test_rewards_and_held_out_figures_are_curves_of_the_training_run(dpo, project):

    tracker.connect()
    client = mlflow.MlflowClient()
    run_id = client.get_model_version_by_alias("tiny-dpo", "champion").tags["tuneline.training_run"]

    steps = {name: [m.step for m in client.get_metric_history(run_id, name)] for name in WATCHED}
    assert steps["rewards/accuracies"] == list(range(1, 31))
    assert steps["validation_loss"] == steps["validation_rewards/margins"] == [10, 20, 30]


WATCHED = ("rewards/accuracies", "rewards/chosen", "validation_loss", "validation_rewards/margins")


def test_kto_learns_from_single_answers(dpo, run):
    made = run("kto_pipeline", **recipe("kto", "signed_log_likelihood", LABELLED))

    assert made.report.metrics()["signed_log_likelihood"]["gain"].mean > 0


def test_a_reward_model_keeps_its_adapter_and_its_head_beside_the_base(dpo, run):

    made = run("rm_pipeline", **recipe("rm", "preference_accuracy", PAIRS, max_steps=60))
    assert {step.name for step in made.steps if step.status == "cached"} >= {"align_pairs", "merge", "tokenize_pack"}

    folder = folder_of("tiny-rm", made.decision.version)
    found = made.report.metrics()["preference_accuracy"]["model"]
    assert found.num_items >= 8, "prompts of which no answer was trained on"
    assert found.mean > 0.9
    assert adapter_bundle.is_adapter_bundle(folder)
    assert (folder / value_head.HEAD_FILE).is_file()


def test_ppo_earns_what_the_registered_reward_model_gives(dpo, project, run):
    chats = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(30)
    ]
    tiny.write_jsonl(project / "data" / "chats.jsonl", chats)
    judge = str(folder_of("tiny-rm", "1"))
    asked = recipe("ppo", "reward", [{"name": "chats", "path": "data/chats.jsonl", "format": "openai"}], max_steps=3)
    asked["train"] |= {"max_completion_length": 8, "per_device_train_batch_size": 4}
    asked["load"] = {"dtype": "float32", "adapters": [{"path": judge, "use": "reward"}]}

    made = run("ppo_pipeline", **asked)

    assert {"reward", "rougeL"} <= set(made.report.metrics())
    assert made.report.metrics()["reward"]["model"].num_items > 5
