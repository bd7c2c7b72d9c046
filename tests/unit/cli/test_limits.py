"""`plan` and `preview` end with one line, whatever a recipe or a template is made to do."""

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
    """Write a recipe whose chat template is of one's own; returns its path."""

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


def refused(*arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, TunelineError), result.exception
    (line,) = str(result.exception).splitlines()
    return line


def multiplied(path):
    lines = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)]
    path.write_text(path.read_text() + "x0: &x0 [a, a]\n" + "".join(lines))


def in_itself(path):
    path.write_text(path.read_text() + "extra: &e {a: *e}\n")


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("make", [multiplied, in_itself, a_pipe])
def test_a_recipe_that_would_hang_is_refused(project, command, make):
    path = project()
    make(path)

    assert refused(*command, path).startswith(f"{path}:")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}",
        "{% for a in range(99999) %}{{ 'a' * 9999999 }}{% endfor %}{{ messages }}",
        "{{ 'a' * 10 ** 11 }}{{ messages }}",
    ],
    ids=["loops", "output", "product"],
)
def test_a_template_without_end_is_refused_by_the_preview(project, monkeypatch, template):
    monkeypatch.setenv("TUNELINE_MAX_TEMPLATE_STEPS", "10000")

    assert "the chat template takes more than" in refused("data", "preview", project(template))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_itself_prints_one_line_and_ends_with_code_2(tmp_path, project, command):
    path = project()
    multiplied(path)

    run = [sys.executable, "-m", "tuneline.cli.main", *command, str(path)]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_is_named_as_one(command, tmp_path):
    assert (
        refused(*command, tmp_path)
        == f"{tmp_path}: is a folder, not a file. Pass the path of a run configuration, like configs/demo.yaml."
    )
