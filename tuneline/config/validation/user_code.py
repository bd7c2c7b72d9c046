"""Code of the user's own, `module:function`: where its source lies, found without importing anything.

The working directory comes first, as with `python -m`.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from tuneline.errors import RecipeError
from tuneline.identity import sha256_of

FORMAT_KEY = "sources.format"


def format_hash(name: str) -> str:
    """Return the sha256 of the source file behind `module:function`; of a built-in format, an empty string.

    Modules that the file imports do not count.

    Raises:
        RecipeError: There is no such module.
    """
    return source_hash(name, FORMAT_KEY) if ":" in name else ""


def source_hash(name: str, key: str) -> str:
    """Return the sha256 of the source file behind `module:function`, which the recipe names under `key`.

    Raises:
        RecipeError: There is no such module.
    """
    return sha256_of(source_file(name, key))


def source_file(name: str, key: str = FORMAT_KEY) -> Path:
    """Return the file that `module` of `module:function` stands for.

    Raises:
        RecipeError: There is no such module.
    """
    return Path(str(find_specs(name, key)[-1].origin))


def find_specs(name: str, key: str = FORMAT_KEY) -> list[ModuleSpec]:
    """Return how Python finds `module` of `module:function`: the packages around it from the outside in, then itself.

    Each has the last part of its name alone.

    Raises:
        RecipeError: There is no such module.
    """
    module, _, function = name.partition(":")
    found = _find(module) if module and function else []
    if not found or not found[-1].has_location or found[-1].origin is None:
        raise RecipeError(
            f"{key} {name!r}: there is no module {module!r} in {Path.cwd()} or among the installed packages. "
            "Write module:function, like my_formats:read_row for the function read_row in my_formats.py."
        )
    return found


def _find(module: str) -> list[ModuleSpec]:
    """Go down the dots of a module's name; `importlib.util.find_spec` would import its parents."""
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    found: list[ModuleSpec] = []
    for part in module.split("."):
        spec = None if path is None else PathFinder.find_spec(part, path)
        if spec is None:
            return []
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        spec.submodule_search_locations = path  # that of a package without __init__.py would be computed anew
        found.append(spec)
    return found
