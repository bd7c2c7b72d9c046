"""Code of the user's own, `module:function`: imported as its file is now, and checked in what it returns.

A format takes a record and returns a list of messages, or a dict with some of the keys of `schema.content`; both are
checked like any row. A reward function takes prompts, completions and references and returns a number each.
"""

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, SupportsFloat

from tuneline.config.sections.sources import Tags
from tuneline.config.validation.user_code import FORMAT, source_file
from tuneline.data import user_code
from tuneline.data.align.formats.base import Format, Record
from tuneline.data.align.formats.standard import OWN, read_own
from tuneline.data.schema import Content
from tuneline.errors import DataError, RecipeError, TunelineError

REWARD = "train.reward_function"


def load(name: str, sha256: str = "") -> Format:
    """Import the function behind `module:function` and make a format of it.

    Args:
        name: `module:function`.
        sha256: Hash of its file when the run began; an empty string accepts the file as it is now.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function, path = user_code.function(name, FORMAT, sha256), source_file(name)

    def align_own(record: Record, tags: Tags) -> Content:
        try:
            said = function(record)
        except (TunelineError, KeyboardInterrupt):
            raise
        except SystemExit as error:
            raise RecipeError(
                f"{FORMAT} {name!r}: {user_code.failure(error, path)}. Return a row, or raise."
            ) from error
        except BaseException as error:
            kind = type(error).__name__
            raise DataError(f"{name} failed: {user_code.failure(error, path)}.", f"{name} raised {kind}") from error
        return _content(name, said, tags)

    return Format(align_own, lambda record: False)


def load_reward(
    name: str, key: str = REWARD, sha256: str = ""
) -> Callable[[list[str], list[str], list[str]], list[float]]:
    """Import a reward function, or a metric, which is one; what it returns is checked at each call.

    Args:
        name: `module:function`.
        key: Where the recipe names it.
        sha256: Hash of its file when the run began; an empty string accepts the file as it is now.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function, path = user_code.function(name, key, sha256), source_file(name, key)

    def judge(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
        try:
            found = function(prompts=prompts, completions=completions, references=references)
            values = list(found) if isinstance(found, Iterable) else found
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: it would end the run with exit code 0 and nothing done
            raise RecipeError(f"{key} {name!r} failed: {user_code.failure(error, path)}. Fix the function.") from error
        if not isinstance(values, list) or len(values) != len(prompts) or not all(map(_is_number, values)):
            raise RecipeError(
                f"{key} {name!r} must return a finite number for each of {len(prompts)} answers, got "
                f"{found!r:.80}. Fix the function."
            )
        return [float(value) for value in values]

    return judge


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str) and isfinite(float(value))


def _content(name: str, said: Any, tags: Tags) -> Content:
    record = {"messages": said} if isinstance(said, list) else said
    if not isinstance(record, dict) or not record.keys() <= OWN:
        got = sorted(map(str, record)) if isinstance(record, dict) else f"{type(said).__name__} {said!r:.60}"
        raise DataError(
            f"{name} must return a list of messages, or a dict with keys among {sorted(OWN)}, got {got}.",
            f"{name} returned something else",
        )
    return read_own(record, tags)
