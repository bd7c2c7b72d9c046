"""Load user functions from exactly the file that a recipe hashes, and describe their failures in one line.

A module in the working directory gets a private name, so that it does not conflict with an installed package of the
same name: a user's `evaluate.py` does not hide the library `evaluate`, and is not hidden by it.
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
"""Imported modules outside the working directory: name -> sha256 of the file at import."""


def load_function(name: str, key: str, sha256: str = "") -> Callable[..., Any]:
    """Import the function `module:function`.

    Args:
        name: `module:function`.
        key: Recipe key that names it.
        sha256: Hash of the file at the start of the run; an empty string accepts the current file.

    Raises:
        RecipeError: The module is missing, fails or has changed, or the function does not exist.
    """
    specs = user_code.find_specs(name, key)
    path = Path(str(specs[-1].origin))
    current_sha256 = sha256_of(path)
    if sha256 and current_sha256 != sha256:
        raise RecipeError(f"{key} {name!r}: {path} changed since the run started. Start the run again.")
    module_name, _, function_name = name.partition(":")
    try:
        module = _import(specs, module_name, current_sha256)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # including SystemExit, so that sys.exit in a module does not end the run silently
        raise RecipeError(
            f"{key} {name!r}: importing {path} failed: {describe_failure(error, path)}. Fix the module."
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        suggestion = did_you_mean(function_name, [other for other in vars(module) if not other.startswith("_")])
        raise RecipeError(f"{key} {name!r}: {path} has no function {function_name!r}.{suggestion} Correct the name.")
    if not callable(function):
        raise RecipeError(
            f"{key} {name!r} is not a function but an object of type {type(function).__name__}. Name a function."
        )
    return function  # type: ignore[no-any-return]


def describe_failure(error: BaseException, path: Path) -> str:
    """Describe an error in user code: its type, message, and line in the user's file."""
    kind = type(error).__name__
    message = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{kind}: {error}"
    return f"{' '.join(message.split())} ({_line(error, path)})"


def _line(error: BaseException, path: Path) -> str:
    """Return `file:line` of the innermost frame in the user's folder, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = path.resolve().parent
    user_frames = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    return f"{user_frames[-1].filename}:{user_frames[-1].lineno}" if user_frames else str(path)


def _import(specs: list[ModuleSpec], name: str, sha256: str) -> ModuleType:
    importlib.invalidate_caches()
    outermost, path = specs[0], Path(str(specs[-1].origin))
    package = sys.modules.get(outermost.name)
    is_imported = len(specs) > 1 and package is not None and _origin(package) == outermost.origin
    with _import_path(Path.cwd()):
        if is_imported or not _in_folder(outermost) or path.suffix != ".py":
            return _import_installed(name, path, sha256)
        return _import_private(specs, sha256)


def _origin(module: ModuleType) -> str | None:
    return getattr(module.__spec__, "origin", None)


def _in_folder(spec: ModuleSpec) -> bool:
    """Return whether a module is in the working directory."""
    return PathFinder.find_spec(spec.name, [str(Path.cwd())]) is not None


def _import_installed(name: str, path: Path, sha256: str) -> ModuleType:
    module = importlib.import_module(name)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ImportError(f"Python imports {name} from {module.__file__}; rename {path.name}")
    if _installed.setdefault(name, sha256) != sha256:
        raise ImportError(f"{path} changed after this process had imported it; start again")
    return module


def _import_private(specs: list[ModuleSpec], sha256: str) -> ModuleType:
    """Execute a file and its parent packages under private names that depend on the file's content."""
    root = f"{PRIVATE_PREFIX}_{digest([str(specs[-1].origin), sha256])[:16]}"
    names = [".".join([root, *(spec.name for spec in specs[1 : depth + 1])]) for depth in range(len(specs))]
    for name, spec in zip(names, specs, strict=True):
        if name not in sys.modules:
            _execute(name, spec, sha256 if spec is specs[-1] else "")
    return sys.modules[names[-1]]


def _execute(name: str, original: ModuleSpec, sha256: str) -> None:
    locations = original.submodule_search_locations
    if original.origin is None:  # a package without __init__.py
        spec: ModuleSpec | None = ModuleSpec(name, None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = list(locations or ())
    else:
        spec = spec_from_file_location(
            name,
            original.origin,
            loader=_HashedLoader(name, original.origin, sha256),
            submodule_search_locations=None if locations is None else list(locations),
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
    """Compiles exactly the bytes that were hashed; Python's bytecode cache compares only time and size."""

    def __init__(self, name: str, path: str, sha256: str) -> None:
        super().__init__(name, path)
        self._sha256 = sha256

    def get_code(self, fullname: str) -> CodeType:
        data = self.get_data(self.path)
        if self._sha256 and hashlib.sha256(data).hexdigest() != self._sha256:
            raise ImportError(f"{self.path} changed while it was read; start again")
        return self.source_to_code(data, self.path)


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Let the user's module import other modules of its folder, without hiding installed libraries afterwards.

    The folder is first in `sys.path` during the import, and last afterwards, for imports inside functions.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in set(sys.modules) - before if _hides_installed(name.partition(".")[0], folder)]:
            del sys.modules[name]  # the user's module keeps its own references
        if not {"", str(folder)} & set(sys.path):
            sys.path.append(str(folder))


def _hides_installed(name: str, folder: Path) -> bool:
    """Return whether a module that was imported from the folder has the name of an installed module."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_relative_to(folder):
        return False
    other_entries = [entry for entry in sys.path if entry and Path(entry) != folder]
    installed = PathFinder.find_spec(name, other_entries)
    return installed is not None and installed.origin is not None and Path(installed.origin) != Path(file)
