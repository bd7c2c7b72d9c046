"""Load the user's own functions from exactly the file that a recipe hashes, and describe their failures in one line.

A module in the working directory gets a private name, so that an installed package of the same name neither replaces
it nor is replaced by it: `evaluate.py` may lie in the folder of someone who uses the library `evaluate`.
"""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tuneline.config.validation import user_code
from tuneline.errors import RecipeError, did_you_mean
from tuneline.identity import digest, sha256_of

PRIVATE_PREFIX = "_tuneline_user_code"

_installed: dict[str, str] = {}
"""Modules outside the working directory that recipes use: name -> sha256 of the file when it was imported."""


def load_function(name: str, key: str, sha256: str = "") -> Callable[..., Any]:
    """Return the function behind `module:function`.

    Args:
        name: `module:function`.
        key: Where the recipe names it.
        sha256: Hash of the file when the run began; an empty string accepts the file as it is now.

    Raises:
        RecipeError: The module is missing, fails or has changed, or has no such function.
    """
    specs = user_code.find_specs(name, key)
    path = Path(str(specs[-1].origin))
    now = sha256_of(path)
    if sha256 and now != sha256:
        raise RecipeError(f"{key} {name!r}: {path} changed since the run began. Start the run again.")
    module_name, _, function_name = name.partition(":")
    try:
        module = _import(specs, module_name, now)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a module that calls sys.exit must not end the run in silence
        raise RecipeError(
            f"{key} {name!r}: importing {path} failed: {describe_failure(error, path)}. Fix the module."
        ) from error
    found = getattr(module, function_name, None)
    if found is None:
        near = did_you_mean(function_name, [known for known in vars(module) if not known.startswith("_")])
        raise RecipeError(f"{key} {name!r}: {path} has no function {function_name!r}.{near} Correct the name.")
    if not callable(found):
        kind = type(found).__name__
        raise RecipeError(f"{key} {name!r} is no function but {kind}. Name a function.")
    return found  # type: ignore[no-any-return]


def describe_failure(error: BaseException, path: Path) -> str:
    """Describe an error of the user's code: kind, message, and the line of the user's file it came from."""
    kind = type(error).__name__
    said = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{kind}: {error}"
    return f"{' '.join(said.split())} ({_line(error, path)})"


def _line(error: BaseException, path: Path) -> str:
    """Return `file:line` of the innermost frame in the user's folder, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = path.resolve().parent
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)


def _import(specs: list[ModuleSpec], name: str, now: str) -> ModuleType:
    importlib.invalidate_caches()
    outermost, path = specs[0], Path(str(specs[-1].origin))
    top = sys.modules.get(outermost.name)
    known = len(specs) > 1 and top is not None and getattr(top.__spec__, "origin", None) == outermost.origin
    with _siblings(Path.cwd()):
        if known or not _in_folder(outermost) or path.suffix != ".py":
            return _import_installed(name, path, now)
        return _import_private(specs, now)


def _in_folder(spec: ModuleSpec) -> bool:
    """Tell whether a module lies in the working directory, and not on the path of all programs."""
    return PathFinder.find_spec(spec.name, [str(Path.cwd())]) is not None


def _import_installed(name: str, path: Path, now: str) -> ModuleType:
    module = importlib.import_module(name)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ImportError(f"Python imports {name} from {module.__file__}; rename {path.name}")
    if _installed.setdefault(name, now) != now:
        raise ImportError(f"{path} changed while this process had it imported; start again")
    return module


def _import_private(specs: list[ModuleSpec], now: str) -> ModuleType:
    """Execute a file, and the packages around it, under names of our own that change with the file."""
    root = f"{PRIVATE_PREFIX}_{digest([str(specs[-1].origin), now])[:16]}"
    names = [".".join([root, *(spec.name for spec in specs[1 : depth + 1])]) for depth in range(len(specs))]
    for name, found in zip(names, specs, strict=True):
        if name not in sys.modules:
            _execute(name, found, now if found is specs[-1] else "")
    return sys.modules[names[-1]]


def _execute(name: str, found: ModuleSpec, sha256: str) -> None:
    inside = found.submodule_search_locations
    if found.origin is None:  # a package without __init__.py
        spec: ModuleSpec | None = ModuleSpec(name, None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = list(inside or ())
    else:
        loader = _HashedLoader(name, found.origin, sha256)
        spec = spec_from_file_location(
            name, found.origin, loader=loader, submodule_search_locations=None if inside is None else list(inside)
        )
        assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        if isinstance(spec.loader, _HashedLoader):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    outer, _, last = name.rpartition(".")
    if outer:
        setattr(sys.modules[outer], last, module)


class _HashedLoader(SourceFileLoader):
    """Compiles the very bytes whose hash is known; Python's cache of bytecode goes by time and size alone."""

    def __init__(self, name: str, path: str, sha256: str) -> None:
        super().__init__(name, path)
        self._sha256 = sha256

    def get_code(self, fullname: str) -> CodeType:
        data = self.get_data(self.path)
        if self._sha256 and hashlib.sha256(data).hexdigest() != self._sha256:
            raise ImportError(f"{self.path} changed while it was read; start again")
        return self.source_to_code(data, self.path)


@contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Let the user's module import its neighbours, without their names hiding libraries from our own code later.

    The folder comes first while the module is imported, and last afterwards, for imports inside its functions.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in set(sys.modules) - before if _hides(name.partition(".")[0], folder)]:
            del sys.modules[name]  # the user's module keeps what it imported
        if not {"", str(folder)} & set(sys.path):
            sys.path.append(str(folder))


def _hides(name: str, folder: Path) -> bool:
    """Tell whether a module that was just imported from the folder has the name of an installed one."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_relative_to(folder):
        return False
    elsewhere = [entry for entry in sys.path if entry and Path(entry) != folder]
    found = PathFinder.find_spec(name, elsewhere)
    return found is not None and found.origin is not None and Path(found.origin) != Path(file)
