"""Rewards by name."""

import pytest

from tuneline.data import reward_function, rewards
from tuneline.errors import RecipeError
from tuneline.evaluation.metrics.overlap import TokenF1


def test_overlap_is_the_f1_of_words():
    found = rewards.overlap(["?"] * 3, ["It is four.", "four", "no"], ["it is FOUR", "It is four", "yes"])

    assert found == pytest.approx([1.0, 0.5, 0.0])


def test_the_reward_and_the_metric_count_the_same_words():
    answers = ["The well-known fox, a brown one!", "", "no", "the"]
    wanted = ["well-known foxes; brown one", "", "", "a"]

    metric = TokenF1(keep_in_memory=True).compute(predictions=answers, references=wanted, aggregate=False)

    assert rewards.overlap(answers, answers, wanted) == metric["token_f1"] == [0.75, 1.0, 0.0, 1.0]


def test_exact_wants_all_words_in_order():
    assert rewards.exact(["?"] * 2, ["It is 4!", "4 it is"], ["it is 4", "it is 4"]) == [1.0, 0.0]


def test_a_recipe_names_them_like_functions_of_its_own():
    judge = reward_function.load_reward_function("tuneline.data.rewards:overlap")

    assert judge(["?"], ["four"], ["four"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tuneline.data.rewards:overlop", "has no function 'overlop'. Did you mean 'overlap'?"),
        ("no_such_module:overlap", "module 'no_such_module' not found"),
    ],
)
def test_what_is_not_there_is_refused_by_the_recipes_key(name, told):
    with pytest.raises(RecipeError, match="train.reward_function") as caught:
        reward_function.load_reward_function(name)

    assert told in str(caught.value)
