"""Locate the source of user code, `module:function`, without importing it.

The working directory is searched first, as with `python -m`.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from tuneline.errors import RecipeError
from tuneline.identity import sha256_of

FORMAT_KEY = "sources.format"


def format_hash(name: str) -> str:
    """Return the sha256 of a custom format's source file; empty for a built-in format.

    Modules that the file imports are not included.

    Raises:
        RecipeError: The module does not exist.
    """
    return source_hash(name, FORMAT_KEY) if ":" in name else ""


def source_hash(name: str, key: str) -> str:
    """Return the sha256 of the source file of `module:function`, which the recipe names under `key`.

    Raises:
        RecipeError: The module does not exist.
    """
    return sha256_of(source_file(name, key))


def source_file(name: str, key: str = FORMAT_KEY) -> Path:
    """Return the source file of `module` in `module:function`.

    Raises:
        RecipeError: The module does not exist.
    """
    return Path(str(find_specs(name, key)[-1].origin))


def find_specs(name: str, key: str = FORMAT_KEY) -> list[ModuleSpec]:
    """Return the import specs of `module` in `module:function`: those of its parent packages, then its own.

    Each spec has only the last part of the module's name.

    Raises:
        RecipeError: The module does not exist.
    """
    module, _, function = name.partition(":")
    specs = _find(module) if module and function else []
    if not specs or not specs[-1].has_location or specs[-1].origin is None:
        raise RecipeError(
            f"{key} {name!r}: module {module!r} not found in {Path.cwd()} or among the installed packages. "
            "Set module:function, like my_formats:read_row for the function read_row in my_formats.py."
        )
    return specs


def _find(module: str) -> list[ModuleSpec]:
    """Resolve a dotted module name without importing; `importlib.util.find_spec` would import parent packages."""
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    specs: list[ModuleSpec] = []
    for part in module.split("."):
        spec = None if path is None else PathFinder.find_spec(part, path)
        if spec is None:
            return []
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        spec.submodule_search_locations = path  # a namespace package would recompute it
        specs.append(spec)
    return specs
