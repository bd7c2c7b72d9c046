"""The house rules that a linter cannot know."""

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
"""What a step may call without watching it: where figures are logged does not change the artifact."""
LIBRARY = sorted(Path("tuneline").rglob("*.py"))
OURS = [
    *LIBRARY,
    *sorted(Path().glob("*.py")),
    *(p for d in ("steps", "pipelines", "materializers") for p in Path(d).glob("*.py")),
]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def library_modules_called(module: ast.Module) -> set[str]:
    froms = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module]
    rooms = [node for node in froms if node.module.startswith("tuneline.") and ".config" not in node.module]
    called = set()
    for node in rooms:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            is_module = Path(*whole.split(".")).with_suffix(".py").is_file()
            called.add((whole if is_module else node.module).removeprefix("tuneline."))
    return called


def library_modules_watched(module: ast.Module) -> set[str]:
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
def test_a_step_watches_the_library_it_calls(path):
    from steps.caching import source_files

    watched = source_files(*library_modules_watched(tree(path)))
    for module in library_modules_called(tree(path)) - TRACKERS:
        assert set(source_files(module)) <= set(watched), f"{path} calls tuneline.{module} unwatched"


@pytest.mark.parametrize("path", STEPS, ids=str)
def test_only_the_ends_of_the_line_are_never_cached(path):
    assert ("enable_cache=False" in path.read_text()) == (path.stem in NEVER_CACHED)


@pytest.mark.parametrize("path", STEPS, ids=str)
def test_a_step_fits_half_a_screen(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 36, f"{path}: {node.name} holds logic that belongs in the library"


@pytest.mark.parametrize("path", OURS, ids=str)
def test_functions_and_modules_keep_their_size(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is longer than a screen"


@pytest.mark.parametrize("room", sorted(path.parent for path in Path("tuneline").rglob("__init__.py")), ids=str)
def test_each_room_says_what_it_knows(room):
    assert ast.get_docstring(tree(room / "__init__.py"))


def test_importing_the_steps_opens_no_store(tmp_path):
    code = "import pipelines, sys; from pathlib import Path; sys.exit(any(Path(sys.argv[1]).rglob('*.db')))"
    env = {"ZENML_CONFIG_PATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    script = tmp_path / "main.py"  # ZenML asks where the script of the process lies, unless there is a `.zen` folder
    script.write_text(code)
    env["PYTHONPATH"] = str(Path.cwd())

    assert subprocess.run([sys.executable, script, tmp_path], env=env, cwd=Path.cwd()).returncode == 0


def test_every_paper_names_modules_and_tests_that_exist():
    rows = [line for line in Path("docs/papers.md").read_text().splitlines() if line.startswith("|")][2:]

    assert rows
    for row in rows:
        named = re.findall(r"`((?:tuneline|tests|configs|benchmarks)/[^`]+)`", row)
        assert named, row
        assert all(Path(path).exists() for path in named), row


def names_of(app):
    return {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}


def test_the_commands_of_the_readme_parse():
    from typer.testing import CliRunner

    from tuneline.cli.app import app

    written = re.findall(r"^tuneline ([a-z-]+)(?: ([a-z]+)\b)?", Path("README.md").read_text(), flags=re.MULTILINE)
    groups = {group.name: names_of(group.typer_instance) for group in app.registered_groups}

    assert written
    assert {first for first, _ in written} <= names_of(app) | groups.keys()
    assert {"preview", "list", "import"} <= {second for first, second in written if first == "data"}
    assert all(second in groups[first] for first, second in written if first in groups)
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_no_file_names_a_machine_or_a_package_registry():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("this is no git checkout")
    pattern = re.compile(r"/(work|farm|root)/|index-url|//registry\.|/simple/")
    texts = ((path, Path(path).read_text(errors="ignore")) for path in tracked if Path(path).is_file())

    assert [path for path, text in texts if pattern.search(text) and path != "tests/test_conventions.py"] == []


@pytest.mark.parametrize("name", ["sft_pipeline", "retrain_pipeline"])
def test_the_root_module_is_the_pipeline_itself(name):
    from zenml.pipelines.pipeline_definition import Pipeline

    assert isinstance(importlib.import_module(name), Pipeline)
