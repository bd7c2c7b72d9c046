"""Imports the root packages `pipelines`, `steps` and `materializers` of Tuneline, not packages of a user's folder.

ZenML stores these import names, and the first folder on Python's path is often the user's, which may have packages of
the same names. Here they are imported from the folder that holds `tuneline`, before other code imports them.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import tuneline
from tuneline.errors import RecipeError

PACKAGES = ("materializers", "steps", "pipelines")


def get_pipeline(name: str) -> Any:
    """Return a pipeline by name.

    Raises:
        RecipeError: Another package named `pipelines`, `steps` or `materializers` is already imported.
    """
    return getattr(import_packages()["pipelines"], name)


def import_packages() -> dict[str, ModuleType]:
    """Import the root packages from the folder that holds `tuneline`.

    The working directory moves to the end of Python's path, so that a file such as `evaluate.py` there does not shadow
    a library that a step imports later.

    Raises:
        RecipeError: Another package of one of these names is already imported.
    """
    root = str(Path(str(tuneline.__file__)).resolve().parents[1])
    for name in PACKAGES:
        _refuse_others(name, root)
    here = [entry for entry in sys.path if entry in ("", str(Path.cwd())) and Path(entry).resolve() != Path(root)]
    others = [entry for entry in sys.path if entry not in here]
    sys.path[:] = [root, *others, *here]
    importlib.invalidate_caches()
    try:
        return {name: importlib.import_module(name) for name in PACKAGES}
    finally:
        sys.path[:] = [*others, *here]


def _refuse_others(name: str, root: str) -> None:
    module = sys.modules.get(name)
    folders = [str(Path(folder).resolve()) for folder in getattr(module, "__path__", [])]
    if module is not None and folders != [str(Path(root, name))]:
        where = folders[0] if folders else getattr(module, "__file__", "an unknown location")
        raise RecipeError(
            f"The package {name!r} was imported from {where}, and Tuneline has one of that name. Rename yours, or "
            "start from another folder."
        )
