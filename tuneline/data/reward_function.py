"""Reward functions of the user, named as `module:function`, with checks of their return values.

A reward function takes prompts, completions and references, and returns one number per completion.
"""

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, SupportsFloat

from tuneline.config.validation.user_code import source_file
from tuneline.data import user_code
from tuneline.errors import RecipeError

REWARD_KEY = "train.reward_function"


def load_reward_function(
    name: str, key: str = REWARD_KEY, sha256: str = ""
) -> Callable[[list[str], list[str], list[str]], list[float]]:
    """Import a reward function or a metric with the same signature; its return value is checked at each call.

    Args:
        name: `module:function`.
        key: Recipe key that names it.
        sha256: Hash of its file at the start of the run; an empty string accepts the current file.

    Raises:
        RecipeError: The module is missing or fails, or the function does not exist.
    """
    function, path = user_code.load_function(name, key, sha256), source_file(name, key)

    def compute_rewards(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
        try:
            returned = function(prompts=prompts, completions=completions, references=references)
            values = list(returned) if isinstance(returned, Iterable) else returned
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # including SystemExit, which would end the run with exit code 0
            raise RecipeError(
                f"{key} {name!r} failed: {user_code.describe_failure(error, path)}. Fix the function."
            ) from error
        if not isinstance(values, list) or len(values) != len(prompts) or not all(map(_is_number, values)):
            raise RecipeError(
                f"{key} {name!r} must return a finite number for each of {len(prompts)} answers, got "
                f"{returned!r:.80}. Fix the function."
            )
        return [float(value) for value in values]

    return compute_rewards


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str) and isfinite(float(value))
