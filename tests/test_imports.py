"""There are no import cycles between modules or between sibling packages."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOTS = ("tuneline", "steps", "pipelines", "materializers")


def name_of(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for root in ROOTS for path in Path(root).rglob("*.py")}


def imports_of(path):
    """Yield the modules that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


EDGES = {
    name: {other for other in imports_of(path) if other in MODULES and other != name} for name, path in MODULES.items()
}


def siblings(name, other):
    """Return the two sibling packages or modules that an import connects; None for an ancestor or descendant."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    depth = next((number for number, (one, two) in enumerate(pairs) if one != two), None)
    if depth is None:
        return None
    return ".".join(name.split(".")[: depth + 1]), ".".join(other.split(".")[: depth + 1])


def test_modules_have_no_import_cycles():
    assert len(MODULES) > 200
    assert list(TopologicalSorter(EDGES).static_order())


def test_sibling_packages_have_no_import_cycles():
    graph = defaultdict(set)
    for name, others in EDGES.items():
        for other in others:
            if pair := siblings(name, other):
                graph[pair[0]].add(pair[1])

    assert "tuneline.data" in graph["tuneline.model"]
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", sorted(Path("tuneline").rglob("*.py")), ids=str)
def test_no_module_of_the_project_is_imported_by_name(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [call.args[0] for call in calls if ast.unparse(call.func).endswith("import_module") and call.args]

    assert [ast.unparse(name) for name in names if isinstance(name, ast.Constant) and name.value in MODULES] == []
