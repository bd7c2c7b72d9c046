"""The Optuna study of a search: stored trials, the best trial, and its confirmation."""

import math

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config.experiments import search as search_config
from tuneline.errors import TrackingError
from tuneline.tracking.experiments import optuna_study
from tuneline.tracking.experiments.sweep import SettingResult


@pytest.fixture
def make(tmp_path, home):
    recipe = tiny.build_project(tmp_path / "project") / "run.yaml"

    def make_search(*values, **options):
        return search_config.parse_search(
            recipe, list(values or ["train.learning_rate=log(1e-5,1e-1)"]), **{"trials": 6, **options}
        )

    return make_search


def draw(study, score=None):
    trial, values = study.draw()
    study.tell(trial, values["train.learning_rate"] if score is None else score, f"run-{trial.number}")
    return values["train.learning_rate"]


def test_a_resumed_search_draws_new_values(make):
    first = [draw(optuna_study.Study(make())) for _ in range(3)]

    trials = optuna_study.Study(make()).trials()
    assert [trial.values["train.learning_rate"] for trial in trials] == first
    assert len(set(first)) == 3
    assert trials[0].run == "run-0"


def test_an_interrupted_trial_is_repeated(make):
    _, interrupted = optuna_study.Study(make()).draw()

    study = optuna_study.Study(make())

    assert study.trials() == []
    assert study.draw()[1] == interrupted


def test_the_best_trial_follows_the_direction_and_failures_have_a_reason(make):
    for direction, expected in (("maximize", 0.3), ("minimize", 0.1)):
        study = optuna_study.Study(make(direction=direction))
        for score in (0.1, float("nan"), 0.3, 0.2):
            draw(study, score)
        assert study.best().score == expected
        assert [trial.reason for trial in study.trials()][1] == "rougeL is nan"


def test_a_search_whose_trials_all_failed_reports_the_last_reason(make):
    study = optuna_study.Study(make())
    study.fail(study.draw()[0], "train.learning_rate is too large.")

    with pytest.raises(TrackingError, match="has a score: train.learning_rate is too large"):
        study.best()


def test_two_processes_cannot_run_the_same_search(make):
    second = optuna_study.exclusive_study(make())

    with optuna_study.exclusive_study(make()), pytest.raises(TrackingError, match="Another process runs the search"):
        second.__enter__()


def test_tpe_samples_closer_to_the_optimum_than_random(make):
    """Compare the last ten of forty samples of a smooth objective, after the estimator has learned its maximum."""
    distances = {}
    for sampler in ("tpe", "random"):
        study, samples = optuna_study.Study(make(sampler=sampler, trials=40)), []
        for _ in range(40):
            trial, values = study.draw()
            samples.append(abs(math.log10(values["train.learning_rate"]) + 2))
            study.tell(trial, -samples[-1], "run")
        distances[sampler] = sum(samples[-10:])
    assert distances["tpe"] < distances["random"] / 2


@pytest.mark.parametrize(
    ("best", "own", "expected"),
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
def test_the_confirmation_compares_the_best_values_with_the_recipe(make, best, own, expected):
    sentence = optuna_study.describe_confirmation(
        make(), SettingResult("best", [], best), SettingResult("as it is", [], own)
    )

    assert expected in sentence


def test_the_confirmation_follows_the_direction(make):
    sentence = optuna_study.describe_confirmation(
        make(direction="minimize"),
        SettingResult("best", [], [0.10, 0.11, 0.12]),
        SettingResult("as it is", [], [0.30, 0.31, 0.32]),
    )

    assert "are significantly better" in sentence
