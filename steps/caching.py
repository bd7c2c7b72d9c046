"""Hashes of library source files for the cache keys of steps.

ZenML hashes the source of the step function alone. Steps here are thin, so a change in a library function would leave
the key unchanged and ZenML would reuse a stale artifact. Every cached step therefore has a `cache_func` that returns
`library_source_hash(...)`.

Imports are resolved from the text of the files: imports inside functions count, as do the templates and YAML tables
next to the code. Nothing is imported, and the hash is the same for a checkout, a wheel and any working directory.
"""

import ast
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tuneline

LIBRARY = Path(tuneline.__file__).parent


def library_source_hash(*modules: str, libraries: tuple[str, ...] = ()) -> str:
    """Return a hash of everything that decides what a step computes.

    Args:
        modules: Library modules that the step calls, as dotted names below `tuneline`.
        libraries: Installed packages whose behavior the result depends on; their versions count.

    Raises:
        LookupError: The library has no such module.
    """
    digest = hashlib.sha256()
    for file in source_files(*modules):
        digest.update(file.relative_to(LIBRARY).as_posix().encode() + b"\0" + file.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name}={_version(name)}" for name in libraries)])


def source_files(*modules: str) -> list[Path]:
    """Return the files of `modules`, of every library module that they import, and the templates next to them."""
    pending = {_file(f"{LIBRARY.name}.{name}") for name in modules}
    visited: set[Path] = set()
    while pending:
        file = pending.pop()
        visited.add(file)
        pending |= _dependencies(file) - visited
    return sorted(visited)


def _dependencies(file: Path) -> set[Path]:
    """Return the library files that a file imports or reads."""
    if file.suffix != ".py":
        return set()
    names: set[str] = set()
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    own_modules = {name for name in names if name.split(".")[0] == LIBRARY.name and _candidates(name)}
    tables = {path for path in file.parent.glob("*.yaml") if path.name in text}
    return {_file(name) for name in own_modules} | tables | set(file.parent.glob("*.jinja"))


def _file(name: str) -> Path:
    """Return the file of the module `tuneline...` without importing it."""
    candidates = _candidates(name)
    if not candidates:
        raise LookupError(f"The library has no module {name!r}, so its source cannot be hashed.")
    return candidates[0]


def _candidates(name: str) -> list[Path]:
    base = LIBRARY.joinpath(*name.split(".")[1:])
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
