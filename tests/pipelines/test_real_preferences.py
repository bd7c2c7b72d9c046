"""Short preference training with a real model and real rows: losses, margins and rewards change as expected."""

import pytest

from tests import tiny
from tuneline.config import load as loading
from tuneline.data import prepare
from tuneline.model import merge, resolve, source
from tuneline.train import training_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROWS = {
    "dpo": ("dpo_en_demo.json", "preference", "preference_accuracy"),
    "kto": ("kto_en_demo.json", "kto", "signed_log_likelihood"),
    "rm": ("dpo_en_demo.json", "preference", "preference_accuracy"),
    "ppo": ("alpaca_en_demo.json", "alpaca", "reward"),
}
TRAIN = {
    "dpo": {"learning_rate": 5e-4, "max_steps": 12, "gradient_accumulation_steps": 2},
    "kto": {"learning_rate": 2e-4, "max_steps": 12, "per_device_train_batch_size": 4},
    "rm": {"learning_rate": 5e-4, "max_steps": 20, "gradient_accumulation_steps": 2},
    "ppo": {"learning_rate": 1e-4, "max_steps": 3, "per_device_train_batch_size": 4, "max_completion_length": 24},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, test_data):
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(folder / "state"))
        yield folder, test_data


def train_stage(project, stage: str, **changes):
    """Train a stage on the first rows of its data; return the inputs, the checkpoint and the report."""
    folder, data = project
    name, format, metric = ROWS[stage]
    recipe = tiny.recipe(
        stage=stage,
        model={"type": "catalogue", "name": "smollm2-135m-instruct"},
        sources=[{"name": "rows", "path": str(data / "llamafactory" / name), "format": format, "max_rows": 60}],
        exams=[],
        merge={"validation_fraction": 0.2},
        tokenize={"max_length": 384, "overlong": "proportional", "max_cut_fraction": 1.0},
        method={"type": "lora", "r": 8, "lora_alpha": 16},
        train=TRAIN[stage] | {"lr_scheduler_type": "constant"} | changes,
        registry={"model_name": "real", "gate": {"metric": metric}},
        **({"load": changes.pop("load")} if "load" in changes else {}),
    )
    if "load" in recipe["train"]:
        del recipe["train"]["load"]
    validated = loading.load(tiny.write_config(folder / f"{stage}.yaml", recipe)).recipe
    tokenizer, base_model, _ = resolve.resolve_inputs(validated.for_resolve())
    rows = prepare.prepare(validated, tokenizer)
    outputs = training_run.train(
        rows, base_model, tokenizer, validated.for_load(), validated.method, validated.for_train()
    )
    return validated, rows, tokenizer, base_model, *outputs


def test_dpo_raises_the_reward_margin_of_real_pairs(project):
    *_, report = train_stage(project, "dpo")

    margins = [entry["rewards/margins"] for entry in report.history]
    assert margins[0] == pytest.approx(0, abs=1e-3)
    assert sum(margins[-6:]) / 6 > 0.03


def test_kto_lowers_the_loss_on_real_answers(project):
    *_, report = train_stage(project, "kto")

    rewards = report.history[-1]
    assert report.summary["final_loss"] < report.summary["first_loss"]
    assert {"kl", "rewards/accuracies"} <= set(rewards)


def test_a_reward_model_trained_on_real_pairs_scores_ppo_on_real_prompts(project):
    recipe, rows, tokenizer, base_model, checkpoint, report = train_stage(project, "rm")
    losses = [entry["loss"] for entry in report.history]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5
    reward_model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, recipe.for_load(), recipe.merge_adapter)
    assert source.check_same_base(base_model, reward_model.path) is None

    *_, report = train_stage(project, "ppo", load={"adapters": [{"path": str(reward_model.path), "use": "reward"}]})

    assert report.history[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert all(entry["reward"] == entry["reward"] for entry in report.history)
    assert len({entry["reward"] for entry in report.history}) == 3
