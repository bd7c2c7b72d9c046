"""The reference of the command line is generated, up to date, and has every command."""

import importlib.util
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneline.cli.app import app


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("cli_reference", "scripts/cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(reference):
    assert reference.PAGE.read_text() == reference.render(), "run `python scripts/cli_reference.py`"


def test_every_command_that_the_help_lists_has_a_section(reference):
    def listed(*group):
        output = CliRunner().invoke(app, [*group, "--help"], env={"TERM": "dumb", "COLUMNS": "200"}).output
        return re.findall(r"^(?:│ )? ?([a-z][a-z-]+)  +\S", output, flags=re.MULTILINE)

    top, data = listed(), listed("data")
    titles = set(re.findall(r"^## `tuneline (.+)`$", reference.PAGE.read_text(), flags=re.MULTILINE))

    assert {"run", "plan", "data"} <= set(top)
    assert titles == {*top, *(f"data {name}" for name in data)} - {"data"}


def test_an_option_of_each_kind_is_described(reference):
    page = Path(reference.PAGE).read_text()

    assert "* `--json`: " in page
    assert "* `--cache / --no-cache`: " in page
    assert "--help" not in page.split("\n## ", maxsplit=1)[1]
