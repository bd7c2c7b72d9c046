"""Hyperparameter searches are validated at all bounds and choices before the first trial."""

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config.experiments import search
from tuneline.errors import RecipeError, SourceError


@pytest.fixture
def recipe(tmp_path, home):
    return tiny.build_project(tmp_path / "project") / "run.yaml"


def read(recipe, *ranges, **options):
    return search.parse_search(recipe, list(ranges), **{"trials": 4, **options})


def test_ranges_and_choices_are_read_in_their_types(recipe):
    result = read(recipe, "train.learning_rate=log(1e-5,1e-3)", "method.r={2,4}", "method.lora_alpha=int(2,8)")

    assert [(dimension.kind, dimension.boundary_values()) for dimension in result.dimensions] == [
        ("log", (1e-5, 1e-3)),
        ("choice", (2, 4)),
        ("int", (2, 8)),
    ]
    assert result.objective == "rougeL"
    assert result.run({"method.r": 4}, seed=7).recipe.train.seed == 7


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ("train.learning_rate", "expected a range. Write key=log(1e-5,1e-3)"),
        ("train.learning_rate=log(0,1)", "log requires 0 < low < high"),
        ("train.learning_rate=uniform(1,0)", "uniform requires low < high"),
        ("train.learning_rate=log(a,b)", "a and b must be two numbers"),
        ("method.r=int(2.5,4)", "int requires whole numbers with low < high"),
        ("method.r={4}", "expected at least two different choices"),
        ("train.seed=int(0,9)", "Set --seeds to the number of confirmation runs"),
        ("train.learning_rat=log(1e-5,1e-3)", "Did you mean 'learning_rate'?"),
        ("method.r={8,many}", "--search method.r=many: "),
        ("method.r=int(0,8)", "--search method.r=0: "),
    ],
)
def test_an_invalid_range_is_refused_before_the_first_run(recipe, range_, message):
    with pytest.raises(RecipeError) as caught:
        read(recipe, range_)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "exam_accuracy"}, "is a metric of an exam"),
        ({"objective": "rougel"}, "does not measure it. Did you mean 'rougeL'?"),
        ({"sampler": "tep"}, "--sampler tep: unknown value. Did you mean 'tpe'? Set tpe or random."),
        ({"direction": "up"}, "--direction up: unknown value. Set maximize or minimize."),
        ({"trials": 1}, "--trials 1: expected at least 2"),
    ],
)
def test_an_invalid_option_is_refused_with_advice(recipe, changes, message):
    with pytest.raises(RecipeError) as caught:
        read(recipe, "method.r={2,4}", **changes)

    assert message in str(caught.value)


def test_a_missing_optuna_is_reported_with_the_package_to_install(recipe, monkeypatch):
    monkeypatch.setattr(search, "find_spec", lambda name: None)

    with pytest.raises(SourceError, match=r"Install tuneline\[search\], or use --set"):
        read(recipe, "method.r={2,4}")


def test_a_gate_on_the_objective_logs_a_warning(tmp_path, home):
    folder = tiny.build_project(tmp_path / "project")
    judged = {"model_name": "tiny", "gate": {"metric": "exam_accuracy"}}
    other = tiny.write_config(folder / "other.yaml", tiny.recipe(registry=judged))

    assert "biased upwards" in search.selection_warning(read(folder / "run.yaml", "method.r={2,4}"))
    assert search.selection_warning(read(other, "method.r={2,4}")) == ""
    assert read(other, "method.r={2,4}").objective == "rouge1"


def test_more_trials_are_the_same_search_and_another_range_is_not(recipe):
    names = [
        read(recipe, "method.r={2,4}", trials=4).name,
        read(recipe, "method.r={2,4}", trials=9).name,
        read(recipe, "method.r={2,8}", trials=4).name,
    ]

    assert names[0] == names[1] != names[2]
