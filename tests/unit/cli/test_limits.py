"""`plan` and `preview` report malicious recipes and templates in one line."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app
from tuneline.errors import TunelineError

pytestmark = pytest.mark.usefixtures("home")
COMMANDS = (["plan"], ["data", "preview"])


@pytest.fixture
def project(tmp_path, project_template):
    """Write a recipe with the given chat template; returns its path."""

    def write(template="{{ messages }}"):
        (tmp_path / "mine.jinja").write_text(template)
        rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(20))
        recipe = tiny.recipe(
            sources=[{"name": "mine", "path": str(rows)}],
            model={"type": "directory", "path": str(project_template / "model")},
            template="mine.jinja",
            exams=[],
            evaluate={},
        )
        return tiny.write_config(tmp_path / "run.yaml", recipe)

    return write


def refusal(*arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, TunelineError), result.exception
    (line,) = str(result.exception).splitlines()
    return line


def use_exponential_aliases(path):
    lines = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)]
    path.write_text(path.read_text() + "x0: &x0 [a, a]\n" + "".join(lines))


def use_recursive_alias(path):
    path.write_text(path.read_text() + "extra: &e {a: *e}\n")


def replace_with_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("make", [use_exponential_aliases, use_recursive_alias, replace_with_pipe])
def test_a_recipe_that_cannot_be_read_safely_is_refused(project, command, make):
    path = project()
    make(path)

    assert refusal(*command, path).startswith(f"{path}:")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}",
        "{% for a in range(99999) %}{{ 'a' * 9999999 }}{% endfor %}{{ messages }}",
        "{{ 'a' * 10 ** 11 }}{{ messages }}",
    ],
    ids=["loops", "output", "product"],
)
def test_an_endless_template_is_refused_by_the_preview(project, monkeypatch, template):
    monkeypatch.setenv("TUNELINE_MAX_TEMPLATE_STEPS", "10000")

    assert "the chat template takes more than" in refusal("data", "preview", project(template))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_prints_one_line_and_exits_with_code_2(tmp_path, project, command):
    path = project()
    use_exponential_aliases(path)

    run = [sys.executable, "-m", "tuneline.cli.main", *command, str(path)]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_in_place_of_a_file_is_refused(command, tmp_path):
    assert (
        refusal(*command, tmp_path)
        == f"{tmp_path}: is a folder, not a file. Pass the path of a run configuration, like configs/demo.yaml."
    )
