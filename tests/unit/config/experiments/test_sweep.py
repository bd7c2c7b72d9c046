"""The runs of a sweep are validated recipes."""

import pytest

from tests import tiny
from tuneline.config.experiments import sweep
from tuneline.errors import RecipeError


@pytest.fixture
def recipe(tmp_path, home):
    return tiny.build_project(tmp_path / "project") / "run.yaml"


def test_every_combination_has_a_run_for_each_seed(recipe):
    result = sweep.build_settings(recipe, ["train.learning_rate=1e-4,3e-4", "method.r=2,4"], 3)

    assert [setting.name for setting in result] == [
        "learning_rate 1e-4, r 2",
        "learning_rate 1e-4, r 4",
        "learning_rate 3e-4, r 2",
        "learning_rate 3e-4, r 4",
    ]
    runs = result[3].runs
    assert [run.recipe.train.seed for run in runs] == [0, 1, 2]
    assert {(run.recipe.train.learning_rate, run.recipe.method.r) for run in runs} == {(3e-4, 4)}
    assert len({run.path for setting in result for run in setting.runs}) == 12


def test_without_values_the_recipe_is_run_with_its_seeds(recipe):
    (setting,) = sweep.build_settings(recipe, [], 2)

    assert setting.name == "unchanged"
    assert len(setting.runs) == 2


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.learning_rate"], "expected key=value,value. Write train.learning_rate=1e-4,3e-4"),
        (["train.seed=1,2"], "Set --seeds to the number of seeds"),
        (["train.max_steps=1", "train.max_steps=2"], "train.max_steps is set twice"),
        (["train.learning_rat=1e-4"], "Did you mean 'learning_rate'?"),
        (["train.learning_rate=fast"], "train.learning_rate"),
        (["method.r.x=1"], "has no section method.r"),
    ],
)
def test_an_invalid_sweep_is_refused_before_the_first_run(recipe, sets, message):
    with pytest.raises(RecipeError) as caught:
        sweep.build_settings(recipe, sets, 1)

    assert str(caught.value).startswith("--set ")
    assert message in str(caught.value)
