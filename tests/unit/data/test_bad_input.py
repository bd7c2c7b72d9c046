"""Errors in recipes, descriptions and paths: each is one line with location, cause and fix."""

import gzip

import pytest

from tests.data_rows import ALPACA_LINES
from tuneline.errors import NotFoundError, RecipeError, SourceError

pytestmark = pytest.mark.usefixtures("home")

READ = ".json, .jsonl, .csv, .tsv, .txt (these also as .gz or .zst), .parquet, .arrow"
OWN_FORMAT = "or module:function for one of your own."


# mistakes in the recipe

RECIPES = {
    "LlamaFactory's name of the format": (
        {"formatting": "alpaca"},
        {},
        "sources.0.formatting: unknown key. Did you mean 'format'?",
    ),
    "columns without their s": (
        {"column": {"instruction": "q"}},
        {},
        "sources.0.column: unknown key. Did you mean 'columns'?",
    ),
    "LlamaFactory's name of a column": (
        {"columns": {"prompt": "q"}},
        {},
        "sources.0.columns.prompt: unknown key. Known: chosen, history, input, instruction, label, messages, output, "
        "rejected, system, text, tools.",
    ),
    "misspelt format": (
        {"format": "sharegtp"},
        {},
        "sources.0.format: unknown format 'sharegtp'. Did you mean 'sharegpt'? Known: auto, alpaca, kto, openai, "
        "preference, sharegpt, standard, text, or module:function for a custom format.",
    ),
    "fewer than no rows": (
        {"max_rows": -5},
        {},
        "sources.0.max_rows: Input should be greater than or equal to 1, got -5.",
    ),
    "rows as a word": (
        {"max_rows": "many"},
        {},
        "sources.0.max_rows: Input should be a valid integer, unable to parse string as an integer, got 'many'.",
    ),
    "no repeats": ({"repeats": 0}, {}, "sources.0.repeats: Input should be greater than or equal to 1, got 0."),
    "weight of nothing": (
        {"weight": 0},
        {"merge": {"strategy": "interleave_under"}},
        "sources.0.weight: Input should be greater than 0, got 0.",
    ),
    "weight below nothing": (
        {"weight": -1.5},
        {"merge": {"strategy": "interleave_over"}},
        "sources.0.weight: Input should be greater than 0, got -1.5.",
    ),
    "weight that nothing draws by": (
        {"weight": 2.0},
        {},
        "parameters.recipe: sources: d has a weight, but merge.strategy is 'concatenate', which does not "
        "sample by weight. Set merge.strategy to interleave_under or interleave_over, or remove weight.",
    ),
    "two places": (
        {"hub": "someone/something"},
        {},
        "sources.0: expected exactly one of path (local files) and hub (a repository). Set one of them.",
    ),
    "one name for two datasets": (
        {},
        {"sources": [{"name": "d", "path": "data/d.jsonl"}, {"name": "d", "path": "data/d.jsonl", "max_rows": 3}]},
        "parameters.recipe: sources: the name 'd' is used by several entries. Rename all but one.",
    ),
    "no room": (
        {},
        {"tokenize": {"max_length": 0}},
        "tokenize.max_length: Input should be greater than or equal to 8, ",
    ),
    "less than no room": (
        {},
        {"tokenize": {"max_length": -5}},
        "tokenize.max_length: Input should be greater than or equal to 8, got -5.",
    ),
    "LlamaFactory's name of the room": (
        {},
        {"tokenize": {"cutoff_len": 128}},
        "tokenize.cutoff_len: unknown key. Known: max_cut_fraction, max_length, overlong, packing, rewritten_history, "
        "thinking, train_on.",
    ),
    "unknown cut": (
        {},
        {"tokenize": {"overlong": "truncate"}},
        "tokenize.overlong: unknown overlong 'truncate'. Known: drop, left, proportional, refuse, right, split.",
    ),
    "unknown packing": (
        {},
        {"tokenize": {"packing": "neat"}},
        "tokenize.packing: expected a valid boolean or 'wrapped', got 'neat'.",
    ),
    "more than all held out": (
        {},
        {"merge": {"validation_fraction": 1.5}},
        "merge.validation_fraction: Input should be less than 1, got 1.5.",
    ),
    "less than none held out": (
        {},
        {"merge": {"validation_fraction": -0.2}},
        "merge.validation_fraction: Input should be greater than or equal to 0, got -0.2.",
    ),
    "none held out": (
        {},
        {"merge": {"validation_fraction": 0}},
        "parameters.recipe: merge.validation_fraction is 0, so no rows would be held out and no model could be "
        "evaluated. Set a fraction, like 0.1.",
    ),
    "misspelt strategy": (
        {},
        {"merge": {"strategy": "interleave"}},
        "merge.strategy: unknown strategy 'interleave'. Did you mean 'interleave_over'?",
    ),
    "LlamaFactory's name of the strategy": (
        {},
        {"merge": {"mix_strategy": "interleave_under"}},
        "merge.mix_strategy: unknown key. Did you mean 'strategy'?",
    ),
    "misspelt stage": ({}, {"stage": "sftt"}, "stage: unknown stage 'sftt'. Did you mean 'sft'?"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_an_error_in_the_recipe_is_reported_with_line_and_key(case, error_of, tmp_path):
    source, recipe, expected = RECIPES[case]

    error, message = error_of({"d.jsonl": ALPACA_LINES}, source, **recipe)

    line, _, text = message.removeprefix("HERE/run.yaml:").partition(": ")
    source_line = (tmp_path / "run.yaml").read_text().splitlines()[int(line) - 1]
    assert error is RecipeError
    assert text.startswith(expected)
    assert text.partition(":")[0].split(".")[-1] in (source_line.partition(":")[0].strip(" -"), "0"), (
        "the line of the key"
    )


def test_an_unknown_template_is_reported_with_the_known_ones(error_of):
    error, message = error_of({"d.jsonl": ALPACA_LINES}, template="smollm3x")

    assert (error, message) == (
        NotFoundError,
        "Unknown template 'smollm3x'. Known: alpaca, auto, chatml, deepseek, default, empty, gemma, llama2, llama3, "
        "mistral, phi, qwen, vicuna, zephyr.",
    )


def test_a_template_of_another_model_is_refused_before_tokenization(error_of):
    error, message = error_of({"d.jsonl": ALPACA_LINES}, template="llama3")

    assert (error, message) == (
        SourceError,
        "template: llama3 ends its turns with text that is not a token of this tokenizer, so the model would not learn "
        "to stop. Use a compatible one: alpaca, chatml, default, empty, llama2, mistral, qwen, vicuna, zephyr.",
    )


# descriptions of datasets

DESCRIPTIONS = {
    "trailing comma": (
        "dataset_info.json",
        '{\n "good": {"file_name": "d.jsonl"},\n}',
        "good",
        "HERE/dataset_info.json:3: not valid JSON: expecting property name enclosed in double quotes at column 1. "
        "Correct the syntax there.",
    ),
    "no place": (
        "dataset_info.json",
        '{"good": {"formatting": "alpaca"}}',
        "good",
        "HERE/dataset_info.json:1: good: has no location. Add file_name (a file in this folder) or hf_hub_url.",
    ),
    "unknown key of LlamaFactory's": (
        "dataset_info.json",
        '{"good": {"file_name": "d.jsonl", "column": {"prompt": "q"}}}',
        "good",
        "HERE/dataset_info.json:1: good.column: unknown key. Did you mean 'columns'?",
    ),
    "unknown name": (
        "datasets.yaml",
        "good: {path: data/d.jsonl}\n",
        "godo",
        "HERE/run.yaml:8: sources.0.dataset: unknown dataset 'godo'. Did you mean 'good'? Known: good.",
    ),
    "unknown key": (
        "datasets.yaml",
        "good: {path: data/d.jsonl, formatting: alpaca}\n",
        "good",
        "HERE/datasets.yaml:1: good.formatting: unknown key. Did you mean 'format'?",
    ),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_an_error_in_a_dataset_description_is_reported_at_its_location(case, error_of, tmp_path):
    file, text, name, expected = DESCRIPTIONS[case]
    (tmp_path / file).write_text(text)

    error = error_of({"d.jsonl": ALPACA_LINES}, sources=[{"dataset": name}], datasets=file)

    assert error == (RecipeError, expected)


# places

PLACES = {
    "misspelt file": (
        {"good.jsonl": ALPACA_LINES},
        "data/godo.jsonl",
        "file HERE/data/godo.jsonl does not exist. Did you mean 'good.jsonl'? Correct the path.",
    ),
    "misspelt folder": (
        {"good.jsonl": ALPACA_LINES},
        "dta/good.jsonl",
        "folder HERE/dta does not exist. Did you mean 'data'? Correct the path.",
    ),
    "pattern of nothing": (
        {"good.jsonl": ALPACA_LINES},
        "data/*.json",
        "no file matches HERE/data/*.json. Correct the pattern (`**` matches folders at any depth).",
    ),
    "several kinds beside a README": (
        {"README.md": "# Data", "a.jsonl": ALPACA_LINES, "b.csv": "instruction,output\na,b\n"},
        "data",
        "HERE/data contains files of several kinds (jsonl: a.jsonl; csv: b.csv). Set a pattern that matches one kind, "
        "like HERE/data/*.jsonl.",
    ),
    "a README alone": (
        {"README.md": "# Data"},
        "data",
        f"folder HERE/data contains no data files. Set a folder with files of these kinds: {READ}.",
    ),
    "a kind that is not read": (
        {"d.pdf": "%PDF"},
        "data/d.pdf",
        f"d.pdf is of an unsupported kind. Set a file of another kind: {READ}.",
    ),
    "packed and unpacked": (
        {"d.jsonl": ALPACA_LINES, "d.jsonl.gz": gzip.compress(ALPACA_LINES.encode())},
        "data",
        "HERE/data/d.jsonl exists both compressed and uncompressed. Remove one, or set a pattern for one.",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_path_without_a_dataset_is_reported(case, error_of):
    files, path, expected = PLACES[case]

    assert error_of(files, {"path": path}) == (SourceError, f"sources.d.path: {expected}")


def test_a_folder_with_one_kind_and_a_readme_is_read(prepare):
    half = ALPACA_LINES.splitlines(keepends=True)

    counts = prepare({"README.md": "#", "a.jsonl": "".join(half[:20]), "b.jsonl": "".join(half[20:])}, {"path": "data"})

    assert counts["train"]["examples"] + counts["validation"]["examples"] == 40
