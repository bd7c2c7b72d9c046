"""The cells of the paper's tables are recipes; budget `paper` equals the recipes in `configs/papers/`."""

import re
from pathlib import Path

import pytest

from tests import tiny
from tuneline.config import load
from tuneline.config.experiments import paper_tables as tables
from tuneline.errors import NotFoundError, RecipeError, SourceError

PAPERS = Path(__file__).parents[4] / "configs" / "papers"
WRITTEN = sorted([*PAPERS.glob("efficiency_*.yaml"), *PAPERS.glob("downstream_*.yaml")])
CELLS = 17
"""Five methods on PubMed, four on each of three tasks."""


def cell(options, task, method):
    return next(
        candidate for candidate in tables.build_cells(options) if (candidate.task, candidate.method) == (task, method)
    )


def test_every_cell_of_the_paper_is_a_recipe_in_configs(home):
    assert len(WRITTEN) == CELLS
    assert len(tables.build_cells(tables.TableOptions("paper"))) == CELLS


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_recipe_in_configs_is_the_cell_of_the_papers_size(path, home):
    method, task = re.match(r"[a-z]+_([a-z]+)_(?:(cnn_dm|xsum|adgen)_)?", path.stem).groups()

    assert load.load(path).recipe == cell(tables.TableOptions("paper"), task or "pubmed", method).config.recipe


def test_the_papers_hyperparameters_are_kept():
    options = tables.TableOptions("paper")
    recipe = tables.run_content(options, "downstream", "xsum", "qlora")["parameters"]["recipe"]

    assert (recipe["method"]["r"], recipe["method"]["lora_alpha"], recipe["method"]["target_modules"]) == (
        128,
        256,
        "all",
    )
    assert recipe["train"]["learning_rate"] == 1e-5
    assert recipe["tokenize"]["max_length"] == 2048
    assert recipe["load"]["quantization"]["type"] == "bnb_4bit"
    galore = tables.run_content(options, "efficiency", "pubmed", "galore")["parameters"]["recipe"]["train"]
    assert (galore["optim"], galore["optim_args"]) == ("galore_adamw", "rank=128,update_proj_gap=200,scale=2.0")


@pytest.mark.parametrize("budget", tables.BUDGETS)
def test_every_budget_has_valid_recipes_with_unique_names(budget, home):
    cells = tables.build_cells(tables.TableOptions(budget))

    assert len({cell.config.recipe.registry.model_name for cell in cells}) == len(cells) == CELLS


def test_the_user_sets_rows_model_and_seed(home, tmp_path):
    rows = tiny.write_texts(tmp_path / "pubmed.jsonl")
    model = tiny.build_model(tmp_path / "Tiny Model.v1")
    options = tables.TableOptions("tiny", str(model), {"pubmed": rows}, tasks=("pubmed",), methods=("lora",), seed=3)

    (only,) = tables.build_cells(options)

    recipe = only.config.recipe
    assert (recipe.model.path, recipe.sources[0].path, recipe.sources[0].hub) == (model, rows, None)
    assert recipe.train.seed == 3
    assert recipe.registry.model_name == "pubmed-tiny-model-v1-lora-tiny"


def test_a_few_rows_of_the_hub_are_streamed_and_many_are_sampled(home):
    few, many = (
        cell(tables.TableOptions(budget), "xsum", "lora").config.recipe.sources[0] for budget in ("small", "paper")
    )

    assert (few.streaming, few.max_rows, few.sample) == (True, 75, "first")
    assert (many.streaming, many.max_rows, many.sample) == (False, 3000, "random")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"budget": "smal"}, NotFoundError, "Unknown budget 'smal'. Did you mean 'small'?"),
        ({"tasks": ("xsumm",)}, NotFoundError, "Unknown task 'xsumm'. Did you mean 'xsum'?"),
        ({"methods": ("loar",)}, NotFoundError, "Unknown method 'loar'. Did you mean 'lora'?"),
        ({"tasks": ("xsum",), "methods": ("freeze",)}, RecipeError, "the paper has no such cell"),
        ({"model": "smollm9"}, SourceError, "expected a folder, a catalogue name"),
        ({"sources": {"xsum": Path("nowhere.jsonl")}}, SourceError, "xsum, full: sources.xsum.path"),
    ],
)
def test_invalid_options_are_refused_before_the_first_run(home, changes, kind, message):
    with pytest.raises(kind) as caught:
        tables.build_cells(tables.TableOptions(**{"budget": "tiny", **changes}))

    assert message in str(caught.value)


def test_rows_are_found_in_a_folder_by_the_names_of_the_tasks(tmp_path):
    for name in ("pubmed.jsonl.gz", "xsum.csv", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "adgen").mkdir()

    assert {task: path.name for task, path in tables.find_sources(tmp_path).items()} == {
        "pubmed": "pubmed.jsonl.gz",
        "xsum": "xsum.csv",
        "adgen": "adgen",
    }
    (tmp_path / "xsum.json").touch()
    with pytest.raises(SourceError, match=r"both xsum.csv and xsum.json match task xsum.*--source xsum="):
        tables.find_sources(tmp_path)


def test_a_folder_without_rows_and_a_wrong_source_are_reported(tmp_path):
    with pytest.raises(SourceError, match="contains none of pubmed.jsonl, cnn_dm.jsonl"):
        tables.find_sources(tmp_path)
    with pytest.raises(SourceError, match="folder not found"):
        tables.find_sources(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="expected TASK=FILE"):
        tables.parse_source("xsum")
    with pytest.raises(NotFoundError, match="Did you mean 'xsum'"):
        tables.parse_source("xsun=rows.jsonl")
    assert tables.parse_source("xsum=a=b.jsonl") == ("xsum", Path("a=b.jsonl"))


def test_the_papers_numbers_are_complete():
    numbers = tables.numbers()
    methods = {"base", *tables.runs()["tables"]["efficiency"]["methods"]}

    assert all(methods | {"parameters"} == set(row) for row in numbers["efficiency"].values())
    for scores in numbers["downstream"].values():
        assert set(scores) == {"cnn_dm", "xsum", "adgen"}
        assert all(len(row) == 5 and all(row[0] < cell for cell in row[1:] if cell) for row in scores.values())
    known = {*numbers["efficiency"], *numbers["downstream"]}
    assert set(numbers["repositories"].values()) == known
