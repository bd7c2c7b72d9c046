"""Code of the user's own, `module:function`: imported as its file is now, and checked in what it returns.

A format takes a record and returns a list of messages, or a dict with some of the keys of `schema.content`; both are
checked like any row. A reward function takes prompts, completions and references and returns a number each.
"""

import importlib
import sys
from collections.abc import Callable, Iterable
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from tuneline.config.custom import FORMAT, source_file
from tuneline.config.sources import Tags
from tuneline.data.formats.base import Format, Record
from tuneline.data.formats.standard import OWN, read_own
from tuneline.data.schema import Content
from tuneline.errors import DataError, RecipeError, TunelineError, did_you_mean
from tuneline.identity import sha256_of

REWARD = "train.reward_function"

_imported: dict[str, str] = {}


def load(name: str) -> Format:
    """Import the function behind `module:function` and make a format of it.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function = _function(name, FORMAT)

    def align_own(record: Record, tags: Tags) -> Content:
        try:
            said = function(record)
        except TunelineError:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise DataError(f"{name} failed: {kind}: {error}.", f"{name} raised {kind}") from error
        return _content(name, said, tags)

    return Format(align_own, lambda record: False)


def load_reward(name: str, key: str = REWARD) -> Callable[[list[str], list[str], list[str]], list[float]]:
    """Import a reward function, or a metric, which is one; what it returns is checked at each call.

    Args:
        name: `module:function`.
        key: Where the recipe names it.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function = _function(name, key)

    def judge(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
        try:
            found = function(prompts=prompts, completions=completions, references=references)
        except Exception as error:
            raise RecipeError(f"{key} {name!r} failed: {type(error).__name__}: {error}. Mend it.") from error
        values = list(found) if isinstance(found, Iterable) else found
        if not isinstance(values, list) or len(values) != len(prompts) or not all(map(_is_number, values)):
            raise RecipeError(
                f"{key} {name!r} must return a finite number for each of {len(prompts)} answers, got "
                f"{found!r:.80}. Mend it."
            )
        return [float(value) for value in values]

    return judge


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str) and isfinite(float(value))


def _function(name: str, key: str) -> Callable[..., Any]:
    path = source_file(name, key)
    module_name, _, function_name = name.partition(":")
    module = _import(name, module_name, path, key)
    function = getattr(module, function_name, None)
    if function is None:
        near = did_you_mean(function_name, [known for known in vars(module) if not known.startswith("_")])
        raise RecipeError(f"{key} {name!r}: {path} has no function {function_name!r}.{near} Correct the name.")
    if not callable(function):
        kind = type(function).__name__
        raise RecipeError(f"{key} {name!r} is no function but {kind}. Name a function.")
    return function


def _import(name: str, module_name: str, path: Path, key: str) -> ModuleType:
    """Import the module as its file is now; a process that lives on would keep the old one."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    now = sha256_of(path)
    try:
        module = importlib.import_module(module_name)
        if _imported.setdefault(module_name, now) != now:
            module = importlib.reload(module)
    except Exception as error:
        raise RecipeError(
            f"{key} {name!r}: importing {path} failed: {type(error).__name__}: {error}. Mend the module."
        ) from error
    _imported[module_name] = now
    return module


def _content(name: str, said: Any, tags: Tags) -> Content:
    record = {"messages": said} if isinstance(said, list) else said
    if not isinstance(record, dict) or not record.keys() <= OWN:
        got = sorted(map(str, record)) if isinstance(record, dict) else f"{type(said).__name__} {said!r:.60}"
        raise DataError(
            f"{name} must return a list of messages, or a dict with keys among {sorted(OWN)}, got {got}.",
            f"{name} returned something else",
        )
    return read_own(record, tags)
