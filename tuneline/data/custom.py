"""A format of the user's own: `module:function`, where the function takes a record and returns what it says.

It returns a list of messages, or a dict with some of the keys of `schema.content`; both are checked like any row.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneline.config.custom import source_file
from tuneline.config.sources import Tags
from tuneline.data.formats.base import Format, Record
from tuneline.data.formats.standard import OWN, read_own
from tuneline.data.schema import Content
from tuneline.errors import DataError, RecipeError, TunelineError, did_you_mean
from tuneline.identity import sha256_of

_imported: dict[str, str] = {}


def load(name: str) -> Format:
    """Import the function behind `module:function` and make a format of it.

    Raises:
        RecipeError: The module is missing or fails, or has no such function.
    """
    function = _function(name)

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


def _function(name: str) -> Callable[[Record], Any]:
    path = source_file(name)
    module_name, _, function_name = name.partition(":")
    module = _import(name, module_name, path)
    function = getattr(module, function_name, None)
    if function is None:
        near = did_you_mean(function_name, [known for known in vars(module) if not known.startswith("_")])
        raise RecipeError(f"sources.format {name!r}: {path} has no function {function_name!r}.{near} Correct the name.")
    if not callable(function):
        kind = type(function).__name__
        raise RecipeError(f"sources.format {name!r} is no function but {kind}. Name a function that takes a record.")
    return function


def _import(name: str, module_name: str, path: Path) -> ModuleType:
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
            f"sources.format {name!r}: importing {path} failed: {type(error).__name__}: {error}. Mend the module."
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
