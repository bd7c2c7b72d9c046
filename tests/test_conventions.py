"""Conventions of the repository that ruff does not check."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = [path for path in sorted(Path("steps").glob("*.py")) if path.name not in {"__init__.py", "caching.py"}]
NEVER_CACHED = {"resolve", "register", "locate", "publish"}
TRACKERS = {"tracking.runs"}
"""Modules that a step may call although its cache key does not cover them: logging does not change artifacts."""
LIBRARY = sorted(Path("tuneline").rglob("*.py"))
OURS = [
    *LIBRARY,
    *sorted(Path().glob("*.py")),
    *(p for d in ("steps", "pipelines", "materializers") for p in Path(d).glob("*.py")),
]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def library_modules_called(module: ast.Module) -> set[str]:
    from_imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module]
    imports = [node for node in from_imports if node.module.startswith("tuneline.") and ".config" not in node.module]
    called = set()
    for node in imports:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            is_module = Path(*whole.split(".")).with_suffix(".py").is_file()
            called.add((whole if is_module else node.module).removeprefix("tuneline."))
    return called


def library_modules_in_cache_key(module: ast.Module) -> set[str]:
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "library_source_hash"
    ]
    named = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    lists = [
        node for node in ast.walk(module) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "modules"
    ]
    return named | {element.value for node in lists for element in node.value.elts}


@pytest.mark.parametrize("path", [path for path in STEPS if path.stem not in NEVER_CACHED], ids=str)
def test_the_cache_key_of_a_step_covers_the_library_modules_that_it_calls(path):
    from steps.caching import source_files

    covered = source_files(*library_modules_in_cache_key(tree(path)))
    for module in library_modules_called(tree(path)) - TRACKERS:
        assert set(source_files(module)) <= set(covered), (
            f"{path} calls tuneline.{module}, which is not in its cache key"
        )


@pytest.mark.parametrize("path", STEPS, ids=str)
def test_only_steps_with_outside_effects_disable_the_cache(path):
    assert ("enable_cache=False" in path.read_text()) == (path.stem in NEVER_CACHED)


@pytest.mark.parametrize("path", STEPS, ids=str)
def test_step_functions_are_short(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 36, f"{path}: {node.name} holds logic that belongs in the library"


@pytest.mark.parametrize("path", OURS, ids=str)
def test_functions_and_modules_stay_below_the_size_limits(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is longer than a screen"


@pytest.mark.parametrize("package", sorted(path.parent for path in Path("tuneline").rglob("__init__.py")), ids=str)
def test_each_package_has_a_docstring(package):
    assert ast.get_docstring(tree(package / "__init__.py"))


def test_importing_the_steps_does_not_open_a_store(tmp_path):
    code = "import pipelines, sys; from pathlib import Path; sys.exit(any(Path(sys.argv[1]).rglob('*.db')))"
    env = {"ZENML_CONFIG_PATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    script = tmp_path / "main.py"  # ZenML looks for the script of the process if there is no `.zen` folder
    script.write_text(code)
    env["PYTHONPATH"] = str(Path.cwd())

    assert subprocess.run([sys.executable, script, tmp_path], env=env, cwd=Path.cwd()).returncode == 0


def test_modules_and_tests_in_the_papers_table_exist():
    rows = [line for line in Path("docs/papers.md").read_text().splitlines() if line.startswith("|")][2:]

    assert rows
    for row in rows:
        named = re.findall(r"`((?:tuneline|tests|configs|benchmarks)/[^`]+)`", row)
        assert named, row
        assert all(Path(path).exists() for path in named), row


def names_of(app):
    return {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}


def test_the_commands_in_the_readme_exist():
    from typer.testing import CliRunner

    from tuneline.cli.app import app

    commands = re.findall(r"^tuneline ([a-z-]+)(?: ([a-z]+)\b)?", Path("README.md").read_text(), flags=re.MULTILINE)
    groups = {group.name: names_of(group.typer_instance) for group in app.registered_groups}

    assert commands
    assert {first for first, _ in commands} <= names_of(app) | groups.keys()
    assert {"preview", "list", "import"} <= {second for first, second in commands if first == "data"}
    assert all(second in groups[first] for first, second in commands if first in groups)
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_no_file_names_a_machine_or_a_package_registry():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(work|farm|root)/|index-url|//registry\.|/simple/")
    texts = ((path, Path(path).read_text(errors="ignore")) for path in tracked if Path(path).is_file())

    assert [path for path, text in texts if pattern.search(text) and path != "tests/test_conventions.py"] == []


@pytest.mark.parametrize("name", ["sft_pipeline", "retrain_pipeline"])
def test_the_root_module_is_the_pipeline_itself(name):
    from zenml.pipelines.pipeline_definition import Pipeline

    assert isinstance(importlib.import_module(name), Pipeline)
