"""`tuneline import`, and LlamaFactory's files where `plan` and `run` expect one of ours."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli import imports
from tuneline.cli.app import app
from tuneline.config.load import load
from tuneline.errors import RecipeError

THEIRS = {"stage": "sft", "do_train": True, "dataset": "rows", "template": "chatml", "output_dir": "saves/it"}


@pytest.fixture
def theirs(tmp_path, home, tiny_model, monkeypatch):
    """A working directory with a file of LlamaFactory, its data and its model."""
    monkeypatch.chdir(tmp_path)
    tiny.write_jsonl(Path("data/rows.jsonl"), tiny.alpaca_rows(4))
    Path("data/dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    Path("theirs.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(tiny_model), **THEIRS}))
    return Path("theirs.yaml")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_file_becomes_a_recipe_that_stands_on_its_own(theirs):
    result = run("import", theirs, "-o", "kept/ours.yaml")

    assert result.exit_code == 0, result.output
    text = Path("kept/ours.yaml").read_text()
    assert "dataset -> sources" in result.stderr
    assert "#   merge.validation_fraction: val_size is not set" in text
    assert "path: ../data/rows.jsonl" in text
    assert load(Path("kept/ours.yaml")).recipe == imports.read_config(theirs).recipe


def test_without_a_file_to_write_the_recipe_alone_is_printed(theirs):
    result = run("import", theirs)

    Path("printed.yaml").write_text(result.stdout)
    assert load(Path("printed.yaml")).recipe.registry.model_name == "it"


def test_a_file_that_is_there_is_not_replaced_unasked(theirs):
    Path("ours.yaml").write_text("mine")

    error = run("import", theirs, "-o", "ours.yaml").exception

    assert isinstance(error, RecipeError)
    assert "ours.yaml already exists" in str(error)
    assert run("import", theirs, "-o", "ours.yaml", "--force").exit_code == 0


def test_plan_shows_the_recipe_and_tells_the_report_apart(theirs):
    result = run("plan", theirs, "--json")

    assert json.loads(result.stdout)["registry"]["model_name"] == "it"
    assert "theirs.yaml is a LlamaFactory configuration." in result.stderr
    assert "Not set in the file" in result.stderr


def test_preview_reads_it_too(theirs):
    result = run("data", "preview", theirs)

    assert result.exit_code == 0, result.output
    assert "It is 0." in result.stdout


def test_a_run_is_started_with_a_file_of_ours(theirs, home):
    checked = imports.read_config(theirs)
    kept = imports.ensure_config_file(checked)

    assert kept.path.parent == home / "imported"
    assert load(kept.path).recipe == checked.recipe
    assert imports.ensure_config_file(checked).path == kept.path


def test_a_file_of_ours_is_read_as_before(project_template):
    checked = imports.read_config(project_template / "run.yaml")

    assert checked.recipe == load(project_template / "run.yaml").recipe
    assert imports.ensure_config_file(checked) is checked


def test_what_has_no_counterpart_ends_the_command_with_its_line(theirs):
    theirs.write_text(theirs.read_text() + "use_dft_loss: true\n")

    error = run("plan", theirs).exception

    assert isinstance(error, RecipeError)
    assert str(error).startswith("theirs.yaml:7: use_dft_loss: True has no counterpart")
