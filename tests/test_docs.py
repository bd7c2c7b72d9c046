"""README, CONTRIBUTING and the documentation site: commands, paths, recipe keys, code and pictures are valid."""

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pymdownx.slugs import slugify
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app
from tuneline.config.stages import ALL_RECIPES

ROOT_PAGES = [Path("README.md"), Path("CONTRIBUTING.md")]
PAGES = [
    *ROOT_PAGES,
    *(Path("docs") / f"{name}.md" for name in ("architecture", "benchmarks", "features", "index", "install")),
]
PICTURES = sorted(Path("docs/images").glob("*.svg"))
FOLDERS = (
    "tuneline",
    "steps",
    "pipelines",
    "materializers",
    "configs",
    "tests",
    "benchmarks",
    "scripts",
    "infra",
    "docs",
)
NOT_FIELDS = {"parameters.recipe", "sources.dataset"}
"""The location of a recipe in its file, and a key that a dataset entry replaces before validation."""
SVG = "{http://www.w3.org/2000/svg}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {slugify(case="lower")(heading.replace("`", ""), "-") for heading in headings}


def test_the_readme_fits_150_lines():
    assert len(ROOT_PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", ROOT_PAGES, ids=str)
def test_relative_links_have_targets(page):
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text())

    assert len(links) > 1
    for link in links:
        path, _, anchor = link.partition("#")
        assert Path(path).exists(), link
        assert not anchor or anchor in anchors(Path(path)), link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_in_pages_exist(page):
    quoted = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^`\s]*)`", page.read_text())
    missing = [path for path in quoted if "NAME" not in path and not Path(path).exists()]

    assert missing == []


def test_the_file_map_lists_existing_paths_and_every_package():
    listed = re.findall(r"^\| `([a-z_./-]+)` \|", Path("docs/architecture.md").read_text(), flags=re.MULTILINE)
    packages = {f"{init.parent}/" for init in Path("tuneline").glob("*/__init__.py")}

    assert len(listed) > 20
    assert [path for path in listed if not Path(path).exists()] == []
    assert {package for package in packages if not any(path.startswith(package) for path in listed)} == set()


def test_the_recipe_in_the_readme_is_valid(tmp_path, monkeypatch):
    (recipe,) = blocks(ROOT_PAGES[0], "yaml")
    (tmp_path / "my.yaml").write_text(recipe)
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]} for i in range(9)
    ]
    tiny.write_jsonl(tmp_path / yaml.safe_load(recipe)["parameters"]["recipe"]["sources"][0]["path"], rows)
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, ["plan", "my.yaml"])

    assert len(recipe.splitlines()) == 7, "the README counts six lines under `parameters`"
    assert result.exit_code == 0, result.output
    assert "my.yaml is valid: sft_pipeline, 9 steps." in result.output


def test_the_demo_table_lists_metrics_that_the_demo_measures():
    recipe = ALL_RECIPES["sft"].model_validate(
        yaml.safe_load(Path("configs/demo.yaml").read_text())["parameters"]["recipe"]
    )
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", ROOT_PAGES[0].read_text(), flags=re.MULTILINE)

    assert {metric for metric, _ in rows} <= set(recipe.metric_names())
    assert {"rougeL", "exam_accuracy"} <= {metric for metric, _ in rows}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def is_key(models: list[type[BaseModel]], key: list[str]) -> bool:
    fields = [model.model_fields[key[0]] for model in models if key[0] in model.model_fields]
    return bool(fields) and (len(key) == 1 or any(is_key(models_in(field.annotation), key[1:]) for field in fields))


def table_cells(page: str, column: str) -> list[str]:
    """Return the cells below a heading, in all tables of a page that have it."""
    cells, index = [], None
    for line in Path(f"docs/{page}.md").read_text().splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if index is not None and len(row) > index:
            cells.append(row[index])
        else:
            index = row.index(column) if column in row else None
    return cells


@pytest.mark.parametrize("page", ["features", "architecture"])
def test_recipe_keys_in_tables_exist(page):
    quoted = [text for cell in table_cells(page, "recipe") for text in re.findall(r"`([^`]+)`", cell)]
    sections = {name for recipe in ALL_RECIPES.values() for name in recipe.model_fields}
    keys = {key for text in quoted if (key := text.partition(":")[0]).split(".")[0] in sections and " " not in key}

    assert len(keys) > 15
    assert [key for key in sorted(keys - NOT_FIELDS) if not is_key(list(ALL_RECIPES.values()), key.split("."))] == []


def test_the_vocabulary_has_unique_terms_and_existing_commands():
    terms = [term.strip() for cell in table_cells("architecture", "term") for term in cell.split(",")][1:]
    commands = {
        text for cell in table_cells("architecture", "command line") for text in re.findall(r"`tuneline (.+?)`", cell)
    }
    titles = set(re.findall(r"^## `tuneline (.+)`$", Path("docs/cli.md").read_text(), flags=re.MULTILINE))

    assert len(terms) == len(set(terms)) > 25
    assert commands
    assert commands <= titles


def test_the_code_of_the_python_page_runs_without_zenml(tiny_model, tmp_path):
    tiny.build_project(tmp_path)
    code = 'import sys; sys.modules["zenml"] = None\n' + blocks(Path("docs/python.md"), "python")[0]

    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TUNELINE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines()[-1] == "['exam_accuracy', 'rouge1', 'rouge2', 'rougeL']"


def labels(picture: str) -> dict[str, float]:
    """Return the names in the boxes of a picture, with their vertical position, in the order of drawing."""
    texts = ET.parse(Path("docs/images") / picture).iter(f"{SVG}text")
    return {text.text or "": float(text.get("y", 0)) for text in texts if "name" in text.get("class", "").split()}


@pytest.mark.parametrize("picture", ["pipeline.svg", "data-path.svg"])
def test_pictures_of_the_pipeline_show_the_steps_in_order(picture):
    recipe = ALL_RECIPES["sft"].model_validate(tiny.recipe())
    steps = list(dict.fromkeys(re.sub(r"^(ingest|align)_.*", r"\1", step) for step in recipe.step_names()))
    order = [*steps[:1], "ingest", "align", *[step for step in steps[1:] if step not in ("ingest", "align")]]

    assert [label for label in labels(picture) if label in order] == order


def test_the_picture_of_the_packages_matches_import_linter():
    contracts = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    heights = labels("packages.svg")
    for contract in (contract for contract in contracts if contract["type"] == "layers"):
        rows = [[f"{name.strip().split('.')[-1]}/" for name in layer.split("|")] for layer in contract["layers"]]
        drawn = [{heights[name] for name in row if name in heights} for row in rows]
        order = [height for row in drawn for height in sorted(row)]

        assert order == sorted(order), contract["name"]
        assert all(len(row) <= 1 for row in drawn), "packages of one layer are drawn side by side"


@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_pictures_are_self_contained_and_have_light_and_dark_colors(picture):
    text = picture.read_text()

    assert "prefers-color-scheme: dark" in text
    assert ET.parse(picture).getroot().find(f"{SVG}title") is not None
    assert re.findall(r"https?://[^\"\s]+", text) == ["http://www.w3.org/2000/svg"]


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    run = subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    host = r'"?(?:https?:)?//'
    loaded = rf'<(?:script|img|iframe)[^>]+src={host}|<link[^>]+rel="?(?:stylesheet|preconnect)[^>]+href={host}'
    assert len(pages) > 20
    assert [str(page) for page in pages if re.search(loaded, page.read_text())] == []
