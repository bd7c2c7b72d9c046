"""Bad data and bad recipes through the way that users go: each is one line that says what is wrong and what to do."""

import gzip
import json
import re
import shutil

import pytest
import zstandard

from tests import tiny
from tuneline.config import load
from tuneline.config.sections.sources import IngestConfig
from tuneline.data import prepare as prepare_module
from tuneline.data.ingest import ingest
from tuneline.errors import DataError, NotFoundError, RecipeError, SourceError, TunelineError
from tuneline.model import source as models

pytestmark = pytest.mark.usefixtures("home")

ALPACA = tiny.alpaca_rows(40)
MEND = "Mend the row, or set align.bad_rows: drop."
READ = ".json, .jsonl, .csv, .tsv, .txt (these also as .gz or .zst), .parquet, .arrow"
AS_TEXT = (
    "and a .txt file is read as plain text, a line a row. Name the file {kind}; where the JSON itself is to be learnt, "
    "write it as texts into a column `text`."
)
FORMATS = (
    "Name the columns, like `{columns}`, or set format: standard, preference, kto, sharegpt, openai, alpaca, text, "
)
OWN_FORMAT = "or module:function for one of your own."
ROLES = "assistant, developer, function, system, tool, user"
SPEAKERS = (
    "assistant, bard, bing, bot, chatbot, chatgpt, claude, customer, developer, function_call, function_response, gpt, "
    "gpt-4, gpt4, human, ipython, model, observation, prompter, sys, system, tool, tool_call, tool_calls, "
    "tool_response, tool_result, user, usr"
)


def openai(*turns, **more):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def sharegpt(*turns, **more):
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def alpaca(instruction, output, **more):
    return {"instruction": instruction, "output": output, **more}


def lines(*rows):
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


OPENAI = [openai(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(40)]
SHAREGPT = [sharegpt(("human", f"q{i}"), ("gpt", f"a{i}")) for i in range(40)]
GOOD = lines(*ALPACA)
QUESTIONS = lines(*({"question": f"q{i}", "answer": f"a{i}"} for i in range(40)))


@pytest.fixture
def prepare(tmp_path, tiny_model):
    """Write data and a recipe, load the recipe and make its training rows; return its counts."""

    def run(files, source=None, **recipe):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        first = {"name": "d", "path": f"data/{next(iter(files))}", **(source or {})}
        small = {"sources": [first], "exams": [], "merge": {"validation_fraction": 0.2}}
        path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**(small | recipe)))
        return prepare_module.prepare(load.load(path).recipe, models.tokenizer_manifest(tiny_model)).counts

    return run


@pytest.fixture
def told(prepare, tmp_path):
    """Return the kind of error that bad input ends with, and its message; the folder is written as HERE."""

    def run(*args, **recipe):
        with pytest.raises(TunelineError) as caught:
            prepare(*args, **recipe)
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith((".", "?"))
        return type(caught.value), message.replace(str(tmp_path), "HERE")

    return run


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
        f"preference, sharegpt, standard, text, {OWN_FORMAT}",
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
        "parameters.recipe: sources: d has a weight, and merge.strategy is 'concatenate', which draws nothing by "
        "weight. Set merge.strategy to interleave_under or interleave_over, or leave weight out.",
    ),
    "two places": (
        {"hub": "someone/something"},
        {},
        "sources.0: give either path (local files) or hub (a repository), and not both.",
    ),
    "one name for two data sets": (
        {},
        {"sources": [{"name": "d", "path": "data/d.jsonl"}, {"name": "d", "path": "data/d.jsonl", "max_rows": 3}]},
        "parameters.recipe: sources holds the name 'd' twice. Give each entry a name of its own.",
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
        "parameters.recipe: merge.validation_fraction is 0, so nothing would be held out, and no model could be "
        "judged. Hold out a share, like 0.1.",
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
def test_a_mistake_in_the_recipe_is_told_with_its_line_and_key(case, told, tmp_path):
    source, recipe, expected = RECIPES[case]

    error, message = told({"d.jsonl": GOOD}, source, **recipe)

    place, _, said = message.removeprefix("HERE/run.yaml:").partition(": ")
    written = (tmp_path / "run.yaml").read_text().splitlines()[int(place) - 1]
    assert error is RecipeError
    assert said.startswith(expected)
    assert said.partition(":")[0].split(".")[-1] in (written.partition(":")[0].strip(" -"), "0"), "the line of the key"


def test_a_template_that_is_not_known_is_told_with_those_that_are(told):
    error, message = told({"d.jsonl": GOOD}, template="smollm3x")

    assert (error, message) == (
        NotFoundError,
        "Unknown template 'smollm3x'. Known: alpaca, auto, chatml, deepseek, default, empty, gemma, llama2, llama3, "
        "mistral, phi, qwen, vicuna, zephyr.",
    )


def test_a_template_of_another_model_is_refused_before_a_row_is_made(told):
    error, message = told({"d.jsonl": GOOD}, template="llama3")

    assert (error, message) == (
        SourceError,
        "template: llama3 ends its turns with text that is not a token of this tokenizer, so the model would not learn "
        "to stop. Use a compatible one: alpaca, chatml, default, empty, llama2, mistral, qwen, vicuna, zephyr.",
    )


# descriptions of data sets

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
        "HERE/dataset_info.json:1: good: says nowhere where the data set is. Add file_name (a file beside this one) or "
        "hf_hub_url.",
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
def test_a_mistake_in_a_description_is_told_where_it_was_written(case, told, tmp_path):
    file, text, name, expected = DESCRIPTIONS[case]
    (tmp_path / file).write_text(text)

    found = told({"d.jsonl": GOOD}, sources=[{"dataset": name}], datasets=file)

    assert found == (RecipeError, expected)


# places

PLACES = {
    "misspelt file": (
        {"good.jsonl": GOOD},
        "data/godo.jsonl",
        "there is no file HERE/data/godo.jsonl. Did you mean 'good.jsonl'? Correct the path.",
    ),
    "misspelt folder": (
        {"good.jsonl": GOOD},
        "dta/good.jsonl",
        "there is no folder HERE/dta. Did you mean 'data'? Correct the path.",
    ),
    "pattern of nothing": (
        {"good.jsonl": GOOD},
        "data/*.json",
        "no file matches HERE/data/*.json. Correct the pattern (`**` stands for folders of any depth).",
    ),
    "several kinds beside a README": (
        {"README.md": "# Data", "a.jsonl": GOOD, "b.csv": "instruction,output\na,b\n"},
        "data",
        "HERE/data holds files of several kinds (jsonl: a.jsonl; csv: b.csv). Give a pattern that matches one kind, "
        "like HERE/data/*.jsonl.",
    ),
    "a README alone": (
        {"README.md": "# Data"},
        "data",
        f"the folder HERE/data holds no data. Give one with files of these kinds: {READ}.",
    ),
    "a kind that is not read": (
        {"d.pdf": "%PDF"},
        "data/d.pdf",
        f"d.pdf is of a kind that is not read. Give one of these: {READ}.",
    ),
    "packed and unpacked": (
        {"d.jsonl": GOOD, "d.jsonl.gz": gzip.compress(GOOD.encode())},
        "data",
        "HERE/data/d.jsonl is there both packed and unpacked. Keep one, or give a pattern for one.",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_path_that_means_no_data_set_is_told(case, told):
    files, path, expected = PLACES[case]

    assert told(files, {"path": path}) == (SourceError, f"sources.d.path: {expected}")


def test_a_folder_with_one_kind_and_a_readme_is_read(prepare):
    half = GOOD.splitlines(keepends=True)

    counts = prepare({"README.md": "#", "a.jsonl": "".join(half[:20]), "b.jsonl": "".join(half[20:])}, {"path": "data"})

    assert counts["train"]["examples"] + counts["validation"]["examples"] == 40


# files

FILES = {
    "empty": ("d.jsonl", "", "FILE:1: the file is empty. Give one with at least one row."),
    "blank lines": ("d.jsonl", "\n\n", "sources.d: FILE holds no rows. Give a file with at least one."),
    "empty list": ("d.json", "[]", "sources.d: FILE holds no rows. Give a file with at least one."),
    "cut list": (
        "d.json",
        json.dumps(ALPACA)[:700],
        'FILE:1: not valid JSON: Expecting \',\' delimiter at column 701, near \'and 9?", "input": ""\'. The text ends '
        "inside a row: write it whole, or download it again.",
    ),
    "cut text in a list": (
        "d.json",
        '[\n{"a": "one"},\n{"a": "tw',
        'FILE:3: not valid JSON: Unterminated string starting at at column 7, near \'{"a": "tw\'. The text ends inside '
        "a row: write it whole, or download it again.",
    ),
    "trailing comma": (
        "d.json",
        '[\n{"instruction": "a", "output": "b"},\n]',
        "FILE:3: not valid JSON: a comma stands before the closing bracket at column 1, near ']'. Correct it there.",
    ),
    "bad line": (
        "d.jsonl",
        lines(*ALPACA[:3], '{"instruction": "a", "output": }', *ALPACA[3:]),
        'FILE:4: not valid JSON: Expecting value at column 32, near \'on": "a", "output": }\'. Correct it there.',
    ),
    "list in .jsonl": (
        "d.jsonl",
        json.dumps([{"instruction": "a", "output": "b"}]),
        "FILE:1: a row must be a JSON object, got list [{'instruction': 'a', 'output': 'b'}]. Name the file .json if "
        "it holds one list.",
    ),
    "list over lines in .jsonl": (
        "d.jsonl",
        json.dumps(ALPACA, indent=1),
        "FILE:1: the line holds '[' alone, and JSON Lines have one whole object a line. Name the file .json if it "
        "holds one list.",
    ),
    "lines in .json": (
        "d.json",
        GOOD,
        "FILE:1: expected a JSON list of rows, got one object a line. Name the file .jsonl.",
    ),
    "object of rows": (
        "d.json",
        json.dumps({"a": ALPACA[0], "b": ALPACA[1]}),
        "FILE:1: expected a JSON list of rows, got one object keyed by 'a' and so on. Write its values as a list, each "
        "with its key as a column.",
    ),
    "list inside an object": (
        "d.json",
        json.dumps({"data": ALPACA}),
        "FILE:1: expected a JSON list of rows, got one object whose 'data' holds a list. Write that list alone if it "
        "is the rows, or [ ] around all if it is one.",
    ),
    "numbers": ("d.jsonl", "1\n2\n", "FILE:1: a row must be a JSON object, got int 1."),
    "no number": (
        "d.jsonl",
        lines(*ALPACA, '{"instruction": "a", "output": NaN}'),
        "FILE:41: NaN is no JSON number; null stands for a missing one. Mend the row.",
    ),
    "key twice": (
        "d.jsonl",
        lines(*ALPACA, '{"instruction": "a", "output": "b", "output": "c"}'),
        "FILE:41: the key 'output' stands twice in one object, so one of its values would be lost. Mend the row.",
    ),
    "lines of JSON in .txt": ("d.txt", GOOD, "FILE:1: its lines are JSON objects, " + AS_TEXT.format(kind=".jsonl")),
    "a list of JSON in .txt": (
        "d.txt.gz",
        gzip.compress(json.dumps(ALPACA, indent=1).encode()),
        "FILE:1: it holds one JSON value, " + AS_TEXT.format(kind=".json"),
    ),
    "UTF-16": (
        "d.jsonl",
        GOOD.encode("utf-16"),
        "FILE:1: this is UTF-16, not UTF-8. Save it as UTF-8 (`iconv -f utf-16 -t utf-8`).",
    ),
    "UTF-16 without its mark": (
        "d.jsonl",
        GOOD.encode("utf-16-le"),
        "FILE:1: this is no text in UTF-8: it holds zero bytes. Save it as UTF-8.",
    ),
    "Latin-1": (
        "d.jsonl",
        (GOOD + '{"instruction": "café", "output": "b"}\n').encode("latin-1"),
        "FILE:41: byte 0xe9 at offset 2955 is not UTF-8. Save the file as UTF-8 (`iconv -f latin1 -t utf-8` where it "
        "is Latin-1).",
    ),
    "Latin-1 in a table": (
        "d.csv",
        "instruction,output\ncafé,b\n".encode("latin-1"),
        "FILE:2: byte 0xe9 at offset 22 is not UTF-8. Save the file as UTF-8 (`iconv -f latin1 -t utf-8` where it is "
        "Latin-1).",
    ),
    "header alone": (
        "d.csv",
        "instruction,output\n",
        "FILE:1: there is a header and no row. Give a file with at least one row.",
    ),
    "semicolons": (
        "d.csv",
        "instruction;output\na;b\n",
        "FILE:1: the header is one column, 'instruction;output'; ';' seems to divide it. Divide .csv by commas and "
        ".tsv by tabs.",
    ),
    "web page": (
        "d.jsonl",
        "<!DOCTYPE html><html>404</html>",
        "FILE:1: this is a web page, not data: most likely an error page. Download the file again.",
    ),
    "cut gzip": (
        "d.jsonl.gz",
        gzip.compress(GOOD.encode())[:-12],
        "FILE:1: the file cannot be unpacked beyond this line (Truncated compressed stream). Most likely its download "
        "was interrupted: download it again.",
    ),
    "cut zstd": (
        "d.jsonl.zst",
        zstandard.compress(GOOD.encode())[:-12],
        "FILE:1: the file cannot be unpacked beyond this line (Truncated compressed stream). Most likely its "
        "download was interrupted: download it again.",
    ),
    "cut gzip of a list": (
        "d.json.gz",
        gzip.compress(json.dumps(ALPACA).encode())[:200],
        "FILE:1: the file cannot be unpacked beyond this line (Truncated compressed stream). Most likely its download "
        "was interrupted: download it again.",
    ),
    "gzip by name alone": (
        "d.jsonl.gz",
        GOOD,
        "FILE:1: this is not packed with gzip, though its name says so. Take .gz off the name.",
    ),
    "gzip under another name": (
        "d.jsonl",
        gzip.compress(GOOD.encode()),
        "FILE:1: this is packed with gzip, and its name does not say so. Add .gz to the name.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_data_is_told_with_its_line(case, told):
    name, content, expected = FILES[case]

    error, message = told({name: content})

    assert message.replace(f"HERE/data/{name}", "FILE") == expected
    assert error in (DataError, SourceError)


MALFORMED = {
    "alpaca_zh_trailing_comma.json.gz": (
        "FILE:14007: not valid JSON: a comma stands before the closing bracket at column 1, near ']'. Correct it there."
    ),
    "conversation_missing_turns.json": (
        "FILE:1: expected a JSON list of rows, got one object whose 'conversations' holds a list. Write that list "
        "alone if it is the rows, or [ ] around all if it is one."
    ),
    "garbage_prefix.jsonl": (
        'FILE:1: not valid JSON: Expecting value at column 1, near \'rug{"query": "Below\'. Correct it there.'
    ),
    "lfs_pointer_dolly.jsonl": ("FILE:1: this is a git-LFS pointer, not the data. Fetch the data with `git lfs pull`."),
    "sharegpt_irregular.jsonl.gz": f"sharegpt_irregular.jsonl.gz:1: turn 3, by the user, is empty. {MEND}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_the_public_malformed_files_are_refused(name, told, test_data):
    _, message = told({name: (test_data / "malformed" / name).read_bytes()})

    assert message.replace(f"HERE/data/{name}", "FILE") == MALFORMED[name]


def test_a_public_torn_table_is_refused_even_where_bad_rows_are_dropped(prepare, test_data):
    name = "cnn_dailymail_broken.csv.gz"
    columns = {"columns": {"instruction": "article", "output": "highlights"}}

    with pytest.raises(DataError) as caught:
        prepare({name: (test_data / "malformed" / name).read_bytes()}, columns, align={"bad_rows": "drop"})

    assert str(caught.value).startswith(
        "sources.d: 67601 of 68061 rows cannot be used, more than align.max_bad_fraction 0.5 (a CSV record whose "
        "fields are all blank: 66713; empty user turn: 448; empty assistant turn: 440). Mend them, or raise the "
        "fraction. The first: cnn_dailymail_broken.csv.gz:3: a CSV record whose fields are all blank"
    )


def test_every_public_malformed_file_is_tried(test_data):
    names = {path.name for path in (test_data / "malformed").iterdir()}

    assert names == {*MALFORMED, "cnn_dailymail_broken.csv.gz"}


# rows

IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
ROWS = {
    "list for an output": (
        [*ALPACA[:3], alpaca("a", ["b"])],
        {},
        "d.jsonl:4: 'output' must be text, got list ['b'].",
    ),
    "lists for all outputs": (
        [alpaca(f"q{i}", ["b"]) for i in range(9)],
        {},
        "d.jsonl:1: 'output' must be text, got list ['b'].",
    ),
    "nested instruction": (
        [alpaca({"text": f"q{i}"}, "b") for i in range(9)],
        {},
        "d.jsonl:1: 'instruction' must be text, got dict {'text': 'q0'}.",
    ),
    "nested text": ([{"text": {"en": "a"}}] * 9, {}, "d.jsonl:1: 'text' must be text, got dict {'en': 'a'}."),
    "no output": (
        [*ALPACA[:3], {"instruction": "a", "input": ""}],
        {},
        "d.jsonl:4: a row in alpaca format needs 'output'; it has ['input', 'instruction'].",
    ),
    "null for an output": (
        [*ALPACA[:3], alpaca("a", None)],
        {},
        "d.jsonl:4: a row in alpaca format needs 'output', and it is null.",
    ),
    "empty output": ([*ALPACA[:3], alpaca("a", "")], {}, "d.jsonl:4: turn 2, by the assistant, is empty."),
    "an input without an instruction": (
        [*ALPACA[:3], {"instruction": "", "input": "a", "output": "b"}],
        {},
        "d.jsonl:4: 'instruction' is empty, and 'input' is 'a': nothing says what to do with it. Where the question "
        "stands in 'input', set columns: {instruction: input}.",
    ),
    "a pair that carries no loss": (
        [{"prompt": "a", "chosen": "b", "rejected": "c", "train": False}],
        {},
        "d.jsonl:1: the row says 'train': false, which is read in turns only. Leave the row out, or write it into the "
        "turns that carry no loss.",
    ),
    "a transcript without an answer": (
        [
            {"chosen": f"\n\nHuman: a\n\nAssistant: {good}", "rejected": "\n\nHuman: a\n\nAssistant: no"}
            for good in ("b", "")
        ],
        {},
        "d.jsonl:2: turn 2, by the assistant, is empty.",
    ),
    "blank instruction": ([*ALPACA[:3], alpaca(" \n", "b")], {}, "d.jsonl:4: turn 1, by the user, is empty."),
    "misspelt column": (
        [{"question": "a", "answer": "b"}],
        {"format": "alpaca", "columns": {"instruction": "questoin", "output": "answer"}},
        "d.jsonl:1: the row has no column 'questoin'; it has ['answer', 'question']. Did you mean 'question'? Correct "
        "columns.instruction.",
    ),
    "other columns further on": (
        [*ALPACA[:3], {"question": "a", "answer": "b"}],
        {},
        "d.jsonl:4: a row in alpaca format needs 'instruction'; it has ['answer', 'question'].",
    ),
    "all roles unknown": (
        [sharegpt(("person", "a"), ("machine", "b"))] * 9,
        {},
        f"d.jsonl:1: unknown role 'person'. Known: {SPEAKERS}. Name your own under tags.",
    ),
    "a role misspelt": (
        [*OPENAI, openai(("user", "a"), ("asistant", "b"))],
        {},
        f"d.jsonl:41: unknown role 'asistant'. Did you mean 'assistant'? Known: {ROLES}. Name your own under tags.",
    ),
    "two system messages": (
        [*OPENAI, openai(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d"))],
        {},
        "d.jsonl:41: there are two system messages.",
    ),
    "no answer": (
        [*OPENAI, openai(("user", "c"))],
        {},
        "d.jsonl:41: the conversation ends on a user turn, so it has no answer to learn.",
    ),
    "no turns": (
        [*OPENAI, {"messages": []}],
        {},
        "d.jsonl:41: 'messages' must be a list of messages, got [].",
    ),
    "two questions": (
        [*SHAREGPT, sharegpt(("human", "a"), ("human", "b"), ("gpt", "c"))],
        {},
        "d.jsonl:41: turn 2, by the user, follows one by the user.",
    ),
    "a call that is not JSON": (
        [*SHAREGPT, sharegpt(("human", "a"), ("function_call", "call it!"), ("observation", "1"), ("gpt", "b"))],
        {},
        "d.jsonl:41: a tool call is not JSON: Expecting value: line 1 column 1 (char 0), in 'call it!'.",
    ),
    "a call without a name": (
        [*SHAREGPT, sharegpt(("human", "a"), ("function_call", '{"arguments": {}}'))],
        {},
        "d.jsonl:41: a tool call must be an object with a name, got {'arguments': {}}.",
    ),
    "tools that are not JSON": (
        [*SHAREGPT, sharegpt(("human", "a"), ("gpt", "b"), tools="get_weather")],
        {},
        "d.jsonl:41: a tool is not JSON: Expecting value: line 1 column 1 (char 0), in 'get_weather'.",
    ),
    "a column of images": (
        [openai(("user", "a"), ("assistant", "b"), images=["a.png"])],
        {},
        "d.jsonl:1: column 'images' holds ['a.png']. Tuneline trains on text only.",
    ),
    "an image in a turn": (
        [*OPENAI, openai(("user", IMAGE), ("assistant", "b"))],
        {},
        'd.jsonl:41: a part of a content must be {"type": "text", "text": ...}, got '
        "{'type': 'image_url', 'image_url': {'url': 'x'}}. Tuneline reads text only.",
    ),
    "two equal answers": (
        [{"prompt": "a", "chosen": "b", "rejected": "b"}],
        {},
        "d.jsonl:1: chosen and rejected are the same.",
    ),
    "a label that is a number": (
        [{"prompt": "a", "completion": "b", "label": 1}],
        {},
        "d.jsonl:1: 'label' must be true or false, got int 1.",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_used_is_refused_with_its_line(case, told):
    rows, source, expected = ROWS[case]

    assert told({"d.jsonl": lines(*rows)}, source) == (DataError, f"{expected} {MEND}")


@pytest.mark.parametrize("case", [name for name, (rows, _, _) in ROWS.items() if len(rows) > 30])
def test_a_row_that_is_dropped_is_counted_and_the_others_are_trained_on(case, prepare, caplog):
    rows, source, _ = ROWS[case]

    counts = prepare({"d.jsonl": lines(*rows)}, source, align={"bad_rows": "drop"})

    assert counts["train"]["examples"] + counts["validation"]["examples"] == len(rows) - 1


def test_a_record_of_another_width_than_its_header_is_refused_with_its_line(told):
    found = told({"d.csv": "instruction,output\na,b\na,b,c\n"})

    assert found == (DataError, f"d.csv:3: a CSV record with 3 fields where the header has 2. {MEND}")


UNDETECTED = {
    "pairs of their own": ({"question": "a", "answer": "b"}, "columns: {instruction: question, output: answer}"),
    "an instruction with a context": (
        {"instruction": "a", "context": "b", "response": "c", "category": "d"},
        "columns: {input: context, output: response}",
    ),
    "nothing known": (
        {"foo": 1, "bar": "x"},
        "columns: {instruction: <the question's column>, output: <the answer's column>}",
    ),
}


@pytest.mark.parametrize("case", UNDETECTED)
def test_rows_of_no_known_format_are_shown_how_to_name_their_columns(case, told):
    row, columns = UNDETECTED[case]

    _, message = told({"d.jsonl": lines(*[row] * 9)})

    assert message == (
        f"sources.d: no known format fits the rows. The rows have {sorted(row)}. "
        f"{FORMATS.format(columns=columns)}{OWN_FORMAT}"
    )


def test_a_misspelt_column_is_told_while_the_format_is_looked_for(told):
    _, message = told({"d.jsonl": QUESTIONS}, {"columns": {"instruction": "questoin", "output": "answer"}})

    assert message == (
        "sources.d: the row has no column 'questoin'; it has ['answer', 'question']. Did you mean 'question'? Correct "
        "columns.instruction."
    )


# data sets as a whole


def test_files_with_different_columns_are_no_data_set(told):
    _, message = told({"a.jsonl": GOOD, "b.jsonl": QUESTIONS}, {"path": "data"})

    assert message == (
        "sources.d: its files do not have the same columns: only a.jsonl has ['input', 'instruction', 'output'], only "
        "b.jsonl has ['answer', 'question']. Make them data sets of their own, or name the columns alike."
    )


def test_a_data_set_of_empty_outputs_is_never_trained_on(told):
    rows = lines(*(alpaca(f"q{i}", "") for i in range(40)))

    _, message = told({"d.jsonl": rows}, align={"bad_rows": "drop", "max_bad_fraction": 1.0})

    assert message == (
        "sources.d: none of 40 rows is left (empty assistant turn: 40). Is the format right? The first: d.jsonl:1: "
        "turn 2, by the assistant, is empty."
    )


def test_too_many_bad_rows_are_an_error_that_counts_them(told):
    rows = [*ALPACA[:3], *(alpaca(f"q{i}", "") for i in range(9))]

    _, message = told({"d.jsonl": lines(*rows)}, align={"bad_rows": "drop"})

    assert message == (
        "sources.d: 9 of 12 rows cannot be used, more than align.max_bad_fraction 0.5 (empty assistant turn: 9). Mend "
        "them, or raise the fraction. The first: d.jsonl:4: turn 2, by the assistant, is empty."
    )


def test_a_data_set_of_copies_is_told_for_what_it_is(told):
    _, message = told({"d.jsonl": lines(*[ALPACA[0]] * 40)})

    assert message == (
        "merge.validation_fraction 0.2 holds out 0 of 1 examples (39 exact copies are left out); 5 are the fewest that "
        "can be measured. Raise it, or give more rows."
    )


def test_a_few_rows_are_too_few_to_hold_some_out(told):
    _, message = told({"d.jsonl": lines(*ALPACA[:6])})

    assert message == (
        "merge.validation_fraction 0.2 holds out 2 of 6 examples; 5 are the fewest that can be measured. Raise it, or "
        "give more rows."
    )


def test_two_kinds_of_examples_are_no_mixture(told):
    texts = lines(*({"text": f"text {i}"} for i in range(20)))
    both = [{"name": "a", "path": "data/a.jsonl"}, {"name": "b", "path": "data/b.jsonl"}]

    _, message = told({"a.jsonl": GOOD, "b.jsonl": texts}, sources=both)

    assert message == (
        "sources hold examples of different kinds (a: 40 chat; b: 20 text), and one recipe trains one kind. Give each "
        "kind a recipe of its own."
    )


def test_pairs_are_not_fine_tuned_on(told):
    pairs = lines(*({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)))

    _, message = told({"d.jsonl": pairs})

    assert message == (
        "the mixture contains examples of kind preference; stage sft trains on chat or text. Set format, or use other "
        "data."
    )


def test_a_data_set_that_only_repeats_another_cannot_be_drawn_from(told):
    both = [{"name": "a", "path": "data/a.jsonl"}, {"name": "b", "path": "data/b.jsonl", "weight": 3.0}]
    merge = {"strategy": "interleave_under", "validation_fraction": 0.2}

    _, message = told({"a.jsonl": GOOD, "b.jsonl": GOOD}, sources=both, merge=merge)

    assert message == (
        "b has no example of its own to train on, so merge.strategy 'interleave_under' cannot draw from it. Leave it "
        "out of sources."
    )


# lengths


def test_a_row_of_eighty_thousand_tokens_is_refused_with_its_length_and_its_beginning(told):
    rows = [*OPENAI, openai(("user", "word " * 27_000), ("assistant", "ok"))]

    _, message = told({"d.jsonl": lines(*rows)})

    assert message == (
        "a row of d that begins with 'word word word word word word word word ' has 108020 tokens, more than "
        "tokenize.max_length 256. Raise max_length, or set tokenize.overlong: drop, right, left, proportional or split."
    )


def test_a_budget_below_any_example_is_told(told):
    _, message = told({"d.jsonl": GOOD}, {"max_tokens": 10})

    assert message == "sources: d has no example within its max_tokens of 10. Raise it."


def test_chats_are_not_torn_by_wrapping(told):
    error, message = told({"d.jsonl": GOOD}, tokenize={"packing": "wrapped", "max_length": 64})

    assert (error, message) == (
        RecipeError,
        "tokenize.packing: wrapped cuts a single stream of texts into rows, and the mixture contains examples of kind "
        "chat, whose answers would be separated from their prompts. Set packing: true.",
    )


@pytest.mark.parametrize("overlong", ["drop", "right", "left", "proportional", "split"])
def test_a_room_too_small_for_any_answer_is_told_not_trained_in(overlong, told):
    tokenize = {"max_length": 8, "overlong": overlong, "max_cut_fraction": 1}

    _, message = told({"d.jsonl": GOOD}, tokenize=tokenize)

    assert message == "Every training example is longer than tokenize.max_length 8. Raise it."


def test_more_cuts_than_the_recipe_allows_are_an_error(told):
    rows = [*OPENAI, *(openai(("user", f"word {i} " * 60), ("assistant", "ok")) for i in range(40))]

    _, message = told({"d.jsonl": lines(*rows)}, tokenize={"max_length": 64, "overlong": "left"})

    counted = re.match(r"(\d+) of (\d+) ", message)
    assert message == (
        f"{counted.group(0)}examples are longer than tokenize.max_length 64 and would be truncated or dropped; "
        "tokenize.max_cut_fraction allows 10%. Raise one of the two."
    )


# while a run goes on


@pytest.fixture
def located(tmp_path):
    """A data set that was found, and its file."""
    path = tiny.write_jsonl(tmp_path / "data" / "d.jsonl", ALPACA)
    recipe = load.load(
        tiny.write_config(tmp_path / "run.yaml", tiny.recipe(sources=[{"name": "d", "path": "data/d.jsonl"}]))
    ).recipe
    return path, ingest.locate_sources(recipe.sources)


def test_a_file_that_changes_while_it_is_read_is_told(located, monkeypatch):
    _, found = located
    read = ingest.readers.chunks

    def changed(path):
        yield from read(path)
        path.write_text(GOOD + lines(alpaca("one", "more")))

    monkeypatch.setattr(ingest.readers, "chunks", changed)
    with pytest.raises(SourceError) as caught:
        ingest.ingest(found, IngestConfig(name="d"))

    assert str(caught.value) == "d: d.jsonl changed during the run. Start the run again to use the new content."


def test_a_file_that_is_cut_while_it_is_read_is_told_as_changed_not_as_malformed(located, monkeypatch):
    _, found = located
    read = ingest.readers.chunks

    def cut(path):
        path.write_text(GOOD[:-30])
        yield from read(path)

    monkeypatch.setattr(ingest.readers, "chunks", cut)
    with pytest.raises(SourceError) as caught:
        ingest.ingest(found, IngestConfig(name="d"))

    assert str(caught.value) == "d: d.jsonl changed during the run. Start the run again to use the new content."


def test_a_file_that_is_gone_when_it_is_to_be_read_is_told(located):
    path, found = located
    shutil.rmtree(path.parent)

    with pytest.raises(SourceError) as caught:
        ingest.ingest(found, IngestConfig(name="d"))

    assert str(caught.value) == f"d: {path} was removed after it had been located. Restore it, or start the run again."
