"""Gates are validated when the recipe is read, in the recipe and in separate files."""

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


def recipe_with(content):
    return tiny.recipe(registry={"model_name": "tiny", "gate": content})


def read(folder, content):
    return load.load(tiny.write_config(folder / "run.yaml", recipe_with(content)))


def error_lines(folder, content):
    with pytest.raises(RecipeError) as caught:
        read(folder, content)
    return str(caught.value).splitlines()


def write_gate(folder, content):
    path = folder / "gates" / "own.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return "gates/own.yaml"


def test_a_gate_of_one_metric_is_one_target(tmp_path):
    config = read(tmp_path, {"metric": "rouge1", "min_gain": 0.02}).recipe.registry.gate

    assert [(target.metric, target.min_effect) for target in config.all_targets()] == [("rouge1", 0.02)]
    assert config.named_metrics() == [("metric", "rouge1")]


def test_a_gate_in_a_file_is_the_gate_in_the_recipe(tmp_path):
    from_file = read(tmp_path, write_gate(tmp_path, RICH))

    assert from_file.recipe == read(tmp_path, RICH).recipe
    assert from_file.content["parameters"]["recipe"]["registry"]["gate"] == RICH, "the run needs no other file"


def test_a_gate_survives_a_round_trip_through_json():
    config = GateConfig.model_validate(RICH)

    assert GateConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"targets": [{"metric": "rougeL"}], "metric": "rougeL"},
            "registry.gate.metric: cannot be combined with targets",
        ),
        (
            {"targets": [{"metric": "rougeL"}], "min_gain": 0.1},
            "registry.gate.min_gain: cannot be combined with targets",
        ),
        ({"targets": [{"metric": "rouge9"}]}, "registry.gate.targets.0.metric: this recipe does not measure rouge9"),
        ({"guards": [{"metric": "mmlu_accuracy", "margin": 0.1}]}, "Set rouge1 or rouge2 or rougeL or"),
        ({"guards": [{"metric": "rouge1"}]}, "registry.gate.guards.0.margin: is required."),
        (
            {"guards": [{"metric": "rouge1", "margin": 0}]},
            "registry.gate.guards.0.margin: Input should be greater than 0",
        ),
        (
            {"guards": [{"metric": "rouge1", "margin": 0.1, "score_range": [1, 0]}]},
            "guards.0.score_range: expected [minimum, maximum] with minimum < maximum, got [1.0, 0.0]. Set [0, 1]",
        ),
        (
            {"guards": [{"metric": "rouge1", "margin": 0.1, "margn": 1}]},
            "guards.0.margn: unknown key. Did you mean 'margin'?",
        ),
        (
            {"guards": [{"metric": "rougeL", "margin": 0.1}]},
            "guards: rougeL is already a target that must improve",
        ),
        ({"targets": [{"metric": "rougeL"}] * 2}, "a metric is listed twice among targets, or twice among guards."),
        (
            {"test": "mcnemar", "min_gain": 0.1},
            "test: mcnemar does not support min_effect, but the target requires a gain",
        ),
        (RICH | {"correction": "none"}, "correction: none with targets_needed: any tests 2 targets at level 0.95 each"),
        ({"preconditions": {"max_lk": 1}}, "registry.gate.preconditions.max_lk: unknown key. Did you mean 'max_kl'?"),
        (
            "gates/none.yaml",
            "gates/none.yaml. Set the path of a gate file, relative to the recipe, or the keys of a gate.",
        ),
    ],
)
def test_a_wrong_gate_is_reported_once_with_its_key(tmp_path, content, message):
    (line,) = error_lines(tmp_path, content)

    assert message in line
    assert line.startswith(f"{tmp_path / 'run.yaml'}:")


def test_an_error_in_a_file_is_reported_with_its_line_there(tmp_path):
    name = write_gate(tmp_path, "targets:\n  - metric: rougeL\nguards:\n  - metric: rouge1\n    margn: 0.1\n")

    lines = error_lines(tmp_path, name)

    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path / name}:{number}" for number in (4, 5)]
    assert "guards.0.margn: unknown key. Did you mean 'margin'?" in lines[1]


def test_an_invalid_yaml_file_is_reported(tmp_path):
    (line,) = error_lines(tmp_path, write_gate(tmp_path, "targets: [\n"))

    assert "own.yaml:2: not valid YAML" in line


@pytest.mark.parametrize("path", sorted(Path("configs/gates").glob("*.yaml")), ids=str)
def test_the_shipped_gates_are_valid_and_document_their_use(path):
    config = GateConfig.model_validate(gate_file.read(path))

    assert config.targets
    assert config.guards
    assert f"gate: gates/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*_lora_smollm2.yaml")), ids=str)
def test_a_gate_without_a_metric_uses_the_default_of_the_stage(path):
    shipped = load.load(path).recipe
    gate_without = {"model_name": "m", "gate": {"min_gain": 0.01}}

    recipe = type(shipped).model_validate(shipped.model_dump() | {"registry": gate_without})

    expected = {"sft": "rougeL", "kto": "signed_log_likelihood", "ppo": "reward", "grpo": "reward"}
    (target,) = recipe.gate().all_targets()
    assert (target.metric, target.min_effect) == (expected.get(recipe.stage, "preference_accuracy"), 0.01)


@pytest.mark.parametrize(
    ("measured", "metric"),
    [
        (["rouge1", "rougeL"], "rougeL"),
        (["bleu", "mmlu_accuracy"], "bleu"),
        (["log_likelihood", "preference_accuracy"], "preference_accuracy"),
        (["rougeL", "reward"], "reward"),
    ],
)
def test_the_default_target_depends_on_the_measured_metrics(measured, metric):
    assert GateConfig().with_default_metric(measured).metric == metric
    assert GateConfig(metric="chrf").with_default_metric(measured).metric == "chrf"


def test_a_gate_with_targets_stored_by_an_earlier_release_is_read():
    stored = GateConfig.model_validate(RICH).model_dump(mode="json") | {"metric": "rougeL", "min_gain": 0.0}

    assert GateConfig.model_validate(stored).all_targets()[1].metric == "exam_accuracy"
