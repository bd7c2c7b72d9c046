"""Imports form no circle: neither between modules, nor between packages that lie side by side."""

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
    """Return the modules of this project that a file imports, inside functions too."""
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
    """Return the two packages or modules in one folder through which an import goes, or None within one line."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    depth = next((number for number, (one, two) in enumerate(pairs) if one != two), None)
    if depth is None:
        return None
    return ".".join(name.split(".")[: depth + 1]), ".".join(other.split(".")[: depth + 1])


def test_modules_import_each_other_in_no_circle():
    assert len(MODULES) > 200
    assert list(TopologicalSorter(EDGES).static_order())


def test_packages_side_by_side_import_each_other_in_no_circle():
    graph = defaultdict(set)
    for name, others in EDGES.items():
        for other in others:
            if pair := siblings(name, other):
                graph[pair[0]].add(pair[1])

    assert "tuneline.data" in graph["tuneline.model"]
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", sorted(Path("tuneline").rglob("*.py")), ids=str)
def test_no_module_imports_another_of_the_project_by_a_string(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [call.args[0] for call in calls if ast.unparse(call.func).endswith("import_module") and call.args]

    assert [ast.unparse(name) for name in names if isinstance(name, ast.Constant) and name.value in MODULES] == []
