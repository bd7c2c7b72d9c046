"""What a search remembers, and what it says of its best."""

import math

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config.experiments import search as asking
from tuneline.errors import TrackingError
from tuneline.tracking.experiments import optuna_study
from tuneline.tracking.experiments.sweep import SettingResult


@pytest.fixture
def make(tmp_path, home):
    recipe = tiny.build_project(tmp_path / "project") / "run.yaml"

    def made(*written, **told):
        return asking.parse_search(
            recipe, list(written or ["train.learning_rate=log(1e-5,1e-1)"]), **{"trials": 6, **told}
        )

    return made


def draw(study, score=None):
    trial, values = study.draw()
    study.tell(trial, values["train.learning_rate"] if score is None else score, f"run-{trial.number}")
    return values["train.learning_rate"]


def test_a_search_goes_on_with_other_draws(make):
    first = [draw(optuna_study.Study(make())) for _ in range(3)]

    trials = optuna_study.Study(make()).trials()
    assert [each.values["train.learning_rate"] for each in trials] == first
    assert len(set(first)) == 3
    assert trials[0].run == "run-0"


def test_a_trial_that_was_cut_off_is_drawn_again(make):
    _, lost = optuna_study.Study(make()).draw()

    study = optuna_study.Study(make())

    assert study.trials() == []
    assert study.draw()[1] == lost


def test_the_best_follows_the_direction_and_failures_are_none(make):
    for direction, expected in (("maximize", 0.3), ("minimize", 0.1)):
        study = optuna_study.Study(make(direction=direction))
        for score in (0.1, float("nan"), 0.3, 0.2):
            draw(study, score)
        assert study.best().score == expected
        assert [each.reason for each in study.trials()][1] == "rougeL is nan"


def test_a_search_whose_trials_all_failed_tells_why(make):
    study = optuna_study.Study(make())
    study.fail(study.draw()[0], "train.learning_rate is too large.")

    with pytest.raises(TrackingError, match="has a score: train.learning_rate is too large"):
        study.best()


def test_two_processes_do_not_run_one_search(make):
    second = optuna_study.exclusive_study(make())

    with optuna_study.exclusive_study(make()), pytest.raises(TrackingError, match="Another process runs the search"):
        second.__enter__()


def test_guided_draws_come_nearer_to_the_best_than_random_ones(make):
    """Of a smooth objective, the last ten of forty draws: the estimator has learned where it is high."""
    found = {}
    for sampler in ("tpe", "random"):
        study, drawn = optuna_study.Study(make(sampler=sampler, trials=40)), []
        for _ in range(40):
            trial, values = study.draw()
            drawn.append(abs(math.log10(values["train.learning_rate"]) + 2))
            study.tell(trial, -drawn[-1], "run")
        found[sampler] = sum(drawn[-10:])
    assert found["tpe"] < found["random"] / 2


@pytest.mark.parametrize(
    ("best", "own", "told"),
    [
        (
            [0.30, 0.31, 0.32],
            [0.10, 0.11, 0.12],
            "significantly better than those of the recipe, which are significantly worse",
        ),
        (
            [0.30, 0.31, 0.32],
            [0.29, 0.32, 0.30],
            "are not significantly better than those of the recipe: not significantly different",
        ),
        ([0.10, 0.11, 0.12], [0.30, 0.31, 0.32], "are worse than those of the recipe: significantly worse"),
        ([0.30], [0.10], "One seed has no variance"),
    ],
)
def test_the_verdict_holds_the_best_against_fresh_seeds(make, best, own, told):
    found = optuna_study.describe_confirmation(
        make(), SettingResult("best", [], best), SettingResult("as it is", [], own)
    )

    assert told in found


def test_where_less_is_better_the_verdict_turns(make):
    told = optuna_study.describe_confirmation(
        make(direction="minimize"),
        SettingResult("best", [], [0.10, 0.11, 0.12]),
        SettingResult("as it is", [], [0.30, 0.31, 0.32]),
    )

    assert "are significantly better" in told
