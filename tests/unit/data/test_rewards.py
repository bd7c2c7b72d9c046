"""Built-in reward functions, and loading reward functions by name."""

import pytest

from tuneline.data import reward_function, rewards
from tuneline.errors import RecipeError
from tuneline.evaluation.metrics.overlap import TokenF1


def test_overlap_is_the_f1_of_words():
    scores = rewards.overlap(["?"] * 3, ["It is four.", "four", "no"], ["it is FOUR", "It is four", "yes"])

    assert scores == pytest.approx([1.0, 0.5, 0.0])


def test_the_reward_and_the_metric_count_the_same_words():
    answers = ["The well-known fox, a brown one!", "", "no", "the"]
    references = ["well-known foxes; brown one", "", "", "a"]

    metric = TokenF1(keep_in_memory=True).compute(predictions=answers, references=references, aggregate=False)

    assert rewards.overlap(answers, answers, references) == metric["token_f1"] == [0.75, 1.0, 0.0, 1.0]


def test_exact_requires_all_words_in_order():
    assert rewards.exact(["?"] * 2, ["It is 4!", "4 it is"], ["it is 4", "it is 4"]) == [1.0, 0.0]


def test_a_built_in_reward_is_loaded_like_a_user_function():
    compute_rewards = reward_function.load_reward_function("tuneline.data.rewards:overlap")

    assert compute_rewards(["?"], ["four"], ["four"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tuneline.data.rewards:overlop", "has no function 'overlop'. Did you mean 'overlap'?"),
        ("no_such_module:overlap", "module 'no_such_module' not found"),
    ],
)
def test_a_missing_function_is_refused_with_the_recipe_key(name, message):
    with pytest.raises(RecipeError, match="train.reward_function") as error:
        reward_function.load_reward_function(name)

    assert message in str(error.value)
