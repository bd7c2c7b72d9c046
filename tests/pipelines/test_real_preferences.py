"""Preference stages on real rows with a real model, short: what is learned goes the right way."""

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


def trained(project, stage: str, **changes):
    """Train a stage on the first rows of its data; return the prepared parts, too."""
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
    checked = loading.load(tiny.write_config(folder / f"{stage}.yaml", recipe)).recipe
    tokenizer, base_model, _ = resolve.resolve_inputs(checked.for_resolve())
    rows = prepare.prepare(checked, tokenizer)
    made = training_run.train(rows, base_model, tokenizer, checked.for_load(), checked.method, checked.for_train())
    return checked, rows, tokenizer, base_model, *made


def test_dpo_moves_the_margin_of_real_pairs(project):
    *_, report = trained(project, "dpo")

    margins = [entry["rewards/margins"] for entry in report.history]
    assert margins[0] == pytest.approx(0, abs=1e-3)
    assert sum(margins[-6:]) / 6 > 0.03


def test_kto_tells_real_answers_apart(project):
    *_, report = trained(project, "kto")

    rewards = report.history[-1]
    assert report.summary["final_loss"] < report.summary["first_loss"]
    assert {"kl", "rewards/accuracies"} <= set(rewards)


def test_a_reward_model_of_real_pairs_judges_a_ppo_of_real_prompts(project):
    checked, rows, tokenizer, base_model, checkpoint, report = trained(project, "rm")
    losses = [entry["loss"] for entry in report.history]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5
    judge = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, checked.for_load(), checked.merge_adapter)
    assert source.check_same_base(base_model, judge.path) is None

    *_, report = trained(project, "ppo", load={"adapters": [{"path": str(judge.path), "use": "reward"}]})

    assert report.history[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert all(entry["reward"] == entry["reward"] for entry in report.history)
    assert len({entry["reward"] for entry in report.history}) == 3
