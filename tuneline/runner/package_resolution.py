"""Our root packages, whatever else is called so: a user's folder may hold a `pipelines/` or `steps/` of its own.

`pipelines`, `steps` and `materializers` are imported by these names, which ZenML stores; the folder that Python looks
into first is often the user's. They are imported here from beside `tuneline`, before anybody else does.
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
    """Return one of our pipelines.

    Raises:
        RecipeError: This process has imported another package called `pipelines`, `steps` or `materializers`.
    """
    return getattr(import_packages()["pipelines"], name)


def import_packages() -> dict[str, ModuleType]:
    """Import our root packages from the folder that holds `tuneline`.

    The working directory goes to the end of Python's path: a file like `evaluate.py` there hides no library from the
    imports that our steps do later.

    Raises:
        RecipeError: This process has imported another package of one of the names.
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
    folders = [str(Path(each).resolve()) for each in getattr(module, "__path__", [])]
    if module is not None and folders != [str(Path(root, name))]:
        where = folders[0] if folders else getattr(module, "__file__", "an unknown place")
        raise RecipeError(
            f"The package {name!r} was imported from {where}, and Tuneline has one of that name. Rename yours, or "
            "start from another folder."
        )
