"""`tuneline import`, and LlamaFactory files as input of `plan`, `run` and `data preview`."""

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

CONFIG = {"stage": "sft", "do_train": True, "dataset": "rows", "template": "chatml", "output_dir": "saves/it"}


@pytest.fixture
def llamafactory_file(tmp_path, home, tiny_model, monkeypatch):
    """A working directory with a LlamaFactory file, its data and its model."""
    monkeypatch.chdir(tmp_path)
    tiny.write_jsonl(Path("data/rows.jsonl"), tiny.alpaca_rows(4))
    Path("data/dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    Path("theirs.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(tiny_model), **CONFIG}))
    return Path("theirs.yaml")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_file_is_imported_as_a_complete_recipe(llamafactory_file):
    result = run("import", llamafactory_file, "-o", "kept/ours.yaml")

    assert result.exit_code == 0, result.output
    text = Path("kept/ours.yaml").read_text()
    assert "dataset -> sources" in result.stderr
    assert "#   merge.validation_fraction: val_size is not set" in text
    assert "path: ../data/rows.jsonl" in text
    assert load(Path("kept/ours.yaml")).recipe == imports.read_config(llamafactory_file).recipe


def test_without_an_output_file_only_the_recipe_is_printed(llamafactory_file):
    result = run("import", llamafactory_file)

    Path("printed.yaml").write_text(result.stdout)
    assert load(Path("printed.yaml")).recipe.registry.model_name == "it"


def test_an_existing_file_is_replaced_only_with_force(llamafactory_file):
    Path("ours.yaml").write_text("mine")

    error = run("import", llamafactory_file, "-o", "ours.yaml").exception

    assert isinstance(error, RecipeError)
    assert "ours.yaml already exists" in str(error)
    assert run("import", llamafactory_file, "-o", "ours.yaml", "--force").exit_code == 0


def test_plan_prints_the_recipe_to_stdout_and_the_report_to_stderr(llamafactory_file):
    result = run("plan", llamafactory_file, "--json")

    assert json.loads(result.stdout)["registry"]["model_name"] == "it"
    assert "theirs.yaml is a LlamaFactory configuration." in result.stderr
    assert "Not set in the file" in result.stderr


def test_preview_reads_a_llamafactory_file(llamafactory_file):
    result = run("data", "preview", llamafactory_file)

    assert result.exit_code == 0, result.output
    assert "It is 0." in result.stdout


def test_a_run_uses_the_converted_file(llamafactory_file, home):
    checked = imports.read_config(llamafactory_file)
    converted = imports.ensure_config_file(checked)

    assert converted.path.parent == home / "imported"
    assert load(converted.path).recipe == checked.recipe
    assert imports.ensure_config_file(checked).path == converted.path


def test_a_tuneline_file_is_not_converted(project_template):
    checked = imports.read_config(project_template / "run.yaml")

    assert checked.recipe == load(project_template / "run.yaml").recipe
    assert imports.ensure_config_file(checked) is checked


def test_an_unsupported_option_is_reported_with_its_line(llamafactory_file):
    llamafactory_file.write_text(llamafactory_file.read_text() + "use_dft_loss: true\n")

    error = run("plan", llamafactory_file).exception

    assert isinstance(error, RecipeError)
    assert str(error).startswith("theirs.yaml:7: use_dft_loss: True has no counterpart")
