"""What a step's cache key must see beyond the step itself: the library behind it.

ZenML hashes the source of the step function only. Our steps are thin, so a changed library function would go unseen
and a stale artifact be reused. Every cached step therefore names a `cache_func` that returns `code_behind(...)`.

Imports are followed in the text of the files: an import inside a function counts, a template or table beside the code
counts, nothing heavy is imported to know it, and the digest is the same for a checkout, a wheel and any directory.
"""

import ast
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tuneline

LIBRARY = Path(tuneline.__file__).parent


def library_source_hash(*modules: str, libraries: tuple[str, ...] = ()) -> str:
    """Digest of everything that decides what a step computes.

    Args:
        modules: Library modules that the step calls, as dotted names below `tuneline`.
        libraries: Installed packages whose behaviour the result depends on; their versions count.

    Raises:
        LookupError: The library has no such module.
    """
    digest = hashlib.sha256()
    for file in source_files(*modules):
        digest.update(file.relative_to(LIBRARY).as_posix().encode() + b"\0" + file.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name}={_version(name)}" for name in libraries)])


def source_files(*modules: str) -> list[Path]:
    """Files of `modules`, of every library module that they import, and the templates beside them."""
    todo = {_file(f"{LIBRARY.name}.{name}") for name in modules}
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= _read_by(file) - seen
    return sorted(seen)


def _read_by(file: Path) -> set[Path]:
    if file.suffix != ".py":
        return set()
    names: set[str] = set()
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name for name in names if name.split(".")[0] == LIBRARY.name and _candidates(name)}
    tables = {path for path in file.parent.glob("*.yaml") if path.name in text}
    return {_file(name) for name in ours} | tables | set(file.parent.glob("*.jinja"))


def _file(name: str) -> Path:
    """Where the module `tuneline...` lies; found without importing it."""
    candidates = _candidates(name)
    if not candidates:
        raise LookupError(f"The library has no module {name!r}, so nothing could watch it.")
    return candidates[0]


def _candidates(name: str) -> list[Path]:
    base = LIBRARY.joinpath(*name.split(".")[1:])
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
