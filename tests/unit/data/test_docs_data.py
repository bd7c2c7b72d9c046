"""The page docs/data.md: every snippet is valid, and every row is read by the entry below it."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tuneline.config import load
from tuneline.config.datasets import data_files
from tuneline.config.sections.data import TokenizeConfig
from tuneline.config.sections.sources import FORMATS, SourceConfig
from tuneline.data.align import align

PAGE = Path("docs/data.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
YAML = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]
DESCRIBED = next(block for block in YAML if "support_chats" in block)
RECIPES = [block for block in YAML if block is not DESCRIBED]
ROWS = [
    (json.loads(row), yaml.safe_load(entry)["sources"][0])
    for (language, row), (following, entry) in pairwise(BLOCKS)
    if (language, following) == ("json", "yaml")
]
FUNCTION = next(text for language, text in BLOCKS if language == "python")


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: " ".join(block))
def test_every_snippet_is_a_valid_recipe(tmp_path, block):
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(DESCRIBED))

    recipe = load.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**block))).recipe

    assert {type(source) for source in recipe.sources} == {SourceConfig}


@pytest.mark.parametrize(("row", "entry"), ROWS, ids=[entry["name"] for _, entry in ROWS])
def test_every_row_is_read_by_its_entry(tmp_path, monkeypatch, row, entry):
    (tmp_path / "my_formats.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_formats", raising=False)
    source = SourceConfig.model_validate(entry)

    example = align.align_record(row, source.format, tags=source.tags, column_names=source.columns)

    assert example["text"] or example["messages"][-1]["content"]


def test_every_format_has_a_row():
    assert {entry["format"] for _, entry in ROWS} == {*FORMATS, "my_formats:read_quiz"}


@pytest.mark.parametrize("name", FORMATS)
def test_auto_detects_the_format_of_each_row(name):
    row = next(row for row, entry in ROWS if entry["format"] == name and "columns" not in entry)

    assert align.detect_format([row]) == name


def test_answers_excluded_from_the_loss_on_the_page_are_excluded():
    row = next(row for row, entry in ROWS if entry["format"] == "openai")

    assert [turn["train"] for turn in align.align_record(row, "openai")["messages"]] == [None, None, False, None, None]


def test_the_tables_name_every_policy_and_every_packing():
    def named(field):
        choices = re.findall(r"'(\w+)'", str(TokenizeConfig.model_fields[field].annotation))
        return {f"`{choice}`" for choice in choices}

    first_cells = {line.split("|")[1].strip().removesuffix(" (default)") for line in PAGE.splitlines() if "|" in line}
    assert named("overlong") | named("packing") <= first_cells


def test_every_kind_of_file_is_named():
    assert all(f"`.{kind}`" in PAGE for kind in (*data_files.TEXT_KINDS, *data_files.TABLE_KINDS))
    assert all(f"`{ending}`" in PAGE for ending in data_files.COMPRESSIONS)
