"""A gate is checked when the recipe is read, wherever it is written."""

from pathlib import Path

import pytest
import yaml

from tests import tiny
from tuneline.config import load
from tuneline.config.parsing import gate_file
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import RecipeError

RICH = {
    "targets": [{"metric": "rougeL", "min_effect": 0.01}, {"metric": "exam_accuracy"}],
    "targets_needed": "any",
    "guards": [{"metric": "rouge1", "margin": 0.02}],
    "preconditions": {"max_kl": 1e-3},
}


def recipe_with(written):
    return tiny.recipe(registry={"model_name": "tiny", "gate": written})


def read(folder, written):
    return load.load(tiny.write_config(folder / "run.yaml", recipe_with(written)))


def told(folder, written):
    with pytest.raises(RecipeError) as caught:
        read(folder, written)
    return str(caught.value).splitlines()


def write_gate(folder, written):
    path = folder / "gates" / "own.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(written if isinstance(written, str) else yaml.safe_dump(written))
    return "gates/own.yaml"


def test_a_gate_of_one_metric_is_one_target(tmp_path):
    config = read(tmp_path, {"metric": "rouge1", "min_gain": 0.02}).recipe.registry.gate

    assert [(target.metric, target.min_effect) for target in config.all_targets()] == [("rouge1", 0.02)]
    assert config.asked() == [("metric", "rouge1")]


def test_a_gate_in_a_file_is_the_gate_in_the_recipe(tmp_path):
    from_file = read(tmp_path, write_gate(tmp_path, RICH))

    assert from_file.recipe == read(tmp_path, RICH).recipe
    assert from_file.content["parameters"]["recipe"]["registry"]["gate"] == RICH, "the run needs no other file"


def test_a_gate_that_went_through_a_run_is_the_same():
    config = GateConfig.model_validate(RICH)

    assert GateConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"targets": [{"metric": "rougeL"}], "metric": "rougeL"}, "registry.gate.metric: stands beside targets, which"),
        ({"targets": [{"metric": "rougeL"}], "min_gain": 0.1}, "registry.gate.min_gain: stands beside targets, which"),
        ({"targets": [{"metric": "rouge9"}]}, "registry.gate.targets.0.metric: this recipe does not measure rouge9"),
        ({"guards": [{"metric": "mmlu_accuracy", "margin": 0.1}]}, "Set rouge1 or rouge2 or rougeL or"),
        ({"guards": [{"metric": "rouge1"}]}, "registry.gate.guards.0.margin: is required."),
        (
            {"guards": [{"metric": "rouge1", "margin": 0}]},
            "registry.gate.guards.0.margin: Input should be greater than 0",
        ),
        (
            {"guards": [{"metric": "rouge1", "margin": 0.1, "score_range": [1, 0]}]},
            "guards.0.score_range: [1.0, 0.0] must be the smallest score, then the largest, like [0, 1].",
        ),
        (
            {"guards": [{"metric": "rouge1", "margin": 0.1, "margn": 1}]},
            "guards.0.margn: unknown key. Did you mean 'margin'?",
        ),
        (
            {"guards": [{"metric": "rougeL", "margin": 0.1}]},
            "guards: rougeL is a target that must rise, so it need not",
        ),
        ({"targets": [{"metric": "rougeL"}] * 2}, "a metric stands twice among targets, or twice among guards."),
        (
            {"test": "mcnemar", "min_gain": 0.1},
            "test: mcnemar asks whether there is any gain, and the target is to gain",
        ),
        (RICH | {"correction": "none"}, "correction: none with targets_needed: any gives luck 2 tries at level 0.95."),
        ({"preconditions": {"max_lk": 1}}, "registry.gate.preconditions.max_lk: unknown key. Did you mean 'max_kl'?"),
        (
            "gates/none.yaml",
            "gates/none.yaml. Give the path of a gate, relative to the recipe, or write the gate here.",
        ),
    ],
)
def test_a_wrong_gate_is_told_once_with_its_key(tmp_path, written, message):
    (line,) = told(tmp_path, written)

    assert message in line
    assert line.startswith(f"{tmp_path / 'run.yaml'}:")


def test_a_mistake_in_a_file_is_told_with_its_line_there(tmp_path):
    name = write_gate(tmp_path, "targets:\n  - metric: rougeL\nguards:\n  - metric: rouge1\n    margn: 0.1\n")

    lines = told(tmp_path, name)

    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path / name}:{number}" for number in (4, 5)]
    assert "guards.0.margn: unknown key. Did you mean 'margin'?" in lines[1]


def test_a_file_that_is_no_yaml_is_told(tmp_path):
    (line,) = told(tmp_path, write_gate(tmp_path, "targets: [\n"))

    assert "own.yaml:2: not valid YAML" in line


@pytest.mark.parametrize("path", sorted(Path("configs/gates").glob("*.yaml")), ids=str)
def test_the_gates_we_give_are_valid_and_say_how_to_use_them(path):
    config = GateConfig.model_validate(gate_file.read(path))

    assert config.targets
    assert config.guards
    assert f"gate: gates/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*_lora_smollm2.yaml")), ids=str)
def test_a_gate_without_a_metric_asks_for_what_the_stage_is_judged_by(path):
    shipped = load.load(path).recipe
    gate_without = {"model_name": "m", "gate": {"min_gain": 0.01}}

    recipe = type(shipped).model_validate(shipped.model_dump() | {"registry": gate_without})

    wanted = {"sft": "rougeL", "kto": "signed_log_likelihood", "ppo": "reward", "grpo": "reward"}
    (target,) = recipe.gate().all_targets()
    assert (target.metric, target.min_effect) == (wanted.get(recipe.stage, "preference_accuracy"), 0.01)


@pytest.mark.parametrize(
    ("measured", "metric"),
    [
        (["rouge1", "rougeL"], "rougeL"),
        (["bleu", "mmlu_accuracy"], "bleu"),
        (["log_likelihood", "preference_accuracy"], "preference_accuracy"),
        (["rougeL", "reward"], "reward"),
    ],
)
def test_what_is_measured_decides_what_a_gate_without_a_metric_asks_for(measured, metric):
    assert GateConfig().with_default_metric(measured).metric == metric
    assert GateConfig(metric="chrf").with_default_metric(measured).metric == "chrf"


def test_a_gate_with_targets_that_an_earlier_release_kept_is_read():
    kept = GateConfig.model_validate(RICH).model_dump(mode="json") | {"metric": "rougeL", "min_gain": 0.0}

    assert GateConfig.model_validate(kept).all_targets()[1].metric == "exam_accuracy"
