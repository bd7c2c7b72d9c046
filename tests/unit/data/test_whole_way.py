"""Real datasets are prepared from file to training row, and every row is counted."""

import gzip
import json
import re
from dataclasses import dataclass, field

import pytest
import yaml

from tests import tiny
from tuneline.config import load
from tuneline.config.sections.data import MergeStepConfig, SourceShare, TokenizeStepConfig
from tuneline.config.sections.sources import AlignConfig, Columns, IngestConfig, SourceConfig
from tuneline.data import prepare, schema
from tuneline.data.align import align
from tuneline.data.chat_template import selection
from tuneline.data.ingest import ingest
from tuneline.data.mixture import merge
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenization.preference_rows import ANSWERS_BY_KIND
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import DataError
from tuneline.identity import Manifest
from tuneline.model import source as models

pytestmark = pytest.mark.usefixtures("home")

NO_EXAMS = Manifest(kind="benchmarks", items=[])
MAX_LENGTH = 16_384
NOT_ROWS = re.compile(r"exams/|malformed/|rouge_oracle/|.*dataset_info.json|.*ori_pqal")


@dataclass(frozen=True)
class Case:
    """The stage that one file is used for, and the expected counts of its rows."""

    stage: str = "sft"
    columns: dict[str, str] = field(default_factory=dict)
    copies: int = 0
    empty: int = 0
    first: int | None = None
    """Number of rows in the fast test; None for all rows."""


CASES = {
    "llamafactory/alpaca_en_demo.json": Case(copies=14),
    "llamafactory/alpaca_zh_demo.json": Case(copies=8),
    "llamafactory/dpo_en_demo.json": Case("preference", copies=5),
    "llamafactory/dpo_zh_demo.json": Case("preference", copies=11),
    "llamafactory/kto_en_demo.json": Case("kto"),
    "llamafactory/glaive_toolcall_en_demo.json": Case(copies=35),
    "llamafactory/identity.json": Case(),
    "llamafactory/c4_demo.jsonl": Case("pretrain"),
    "llamafactory/wiki_demo.txt": Case("pretrain"),
    "sft/alpaca_data_50k.jsonl.gz": Case(empty=27, first=3000),
    "sft/gsm8k_train.jsonl.gz": Case(columns={"instruction": "question", "output": "answer"}, first=1000),
    "sft/oaast_sft_zh.json.gz": Case(copies=5),
    "sharegpt/sharegpt_zh.jsonl.gz": Case(first=20),
    "sharegpt/moss_multiturn.jsonl.gz": Case(first=40),
    "summarization/xsum_eval.jsonl.gz": Case(columns={"instruction": "document", "output": "summary"}, first=300),
    "summarization/xsum_train.jsonl.gz": Case(columns={"instruction": "document", "output": "summary"}, first=300),
    "summarization/cnn_dailymail_train.jsonl.gz": Case(
        columns={"instruction": "article", "output": "highlights"}, copies=1
    ),
    "summarization/cnn_dailymail_eval.jsonl.gz": Case(columns={"instruction": "article", "output": "highlights"}),
    "summarization/adgen.jsonl.gz": Case(columns={"instruction": "content", "output": "summary"}),
    "pubmed/pubmed_abstracts.jsonl.gz": Case("pretrain", first=300),
}


@pytest.fixture
def manifest_rows(test_data):
    """The rows that the manifest of the test data counts in each file of rows."""
    text = (test_data / "MANIFEST.md").read_text()
    matches = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \|", text, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in matches if not NOT_ROWS.match(name)}


@pytest.fixture
def tokenizer(tiny_model):
    """The tiny model's tokenizer with a template that renders tool schemas and tool calls."""
    return selection.select_template(models.tokenizer_manifest(tiny_model), "qwen")[0]


@pytest.fixture
def examples_of(test_data):
    """Return a function that reads and aligns a file."""

    def read(name, first=None, **columns):
        located = ingest.locate_sources([SourceConfig(name="real", path=test_data / name)])
        records = ingest.ingest(located, IngestConfig(name="real", max_rows=first))
        return records, align.align(records, AlignConfig(columns=Columns(**columns), bad_rows="drop"))

    return read


def mix(*examples, **config):
    return merge.merge(list(examples), NO_EXAMS, MergeStepConfig(**{"validation_fraction": 0.1} | config))


def tokenize_mixture(mixture, tokenizer, **config):
    defaults = {"max_length": 2048, "overlong": "drop", "max_cut_fraction": 1}
    return tokenize.tokenize_pack(mixture, tokenizer, TokenizeStepConfig(**defaults | config))


def check_rows(rows, mixture, max_length):
    """Check packed rows against their counts and the mixture: no example is lost or added."""
    for split, examples in mixture.splits.items():
        if split not in rows.splits:
            continue
        counts, split_rows = rows.counts[split], rows.splits[split].to_list()
        left_out = counts["dropped"] + sum(counts["beyond_max_tokens"].values())
        assert counts["examples"] == examples.num_rows
        assert counts["overlong"] == counts["cut"] + counts["dropped"]
        assert counts["sequences"] == counts["examples"] - left_out + counts["made_by_split"]
        assert counts["sequences"] == sum(len(row["lengths"]) for row in split_rows) == sum(counts["lengths"]["counts"])
        assert counts["rows"] == len(split_rows)
        assert counts["tokens"] == sum(len(row["input_ids"]) for row in split_rows)
        assert counts["trained_tokens"] == sum(len(trained_positions(row)) for row in split_rows)
        assert {example for row in split_rows for example in row["example_ids"]} <= set(examples["id"])
        for row in split_rows:
            assert len(row["input_ids"]) == len(row["labels"]) == sum(row["lengths"]) <= max_length
            assert all(row["input_ids"][i] == row["labels"][i] for i in trained_positions(row))


def check_answers(rows, mixture, max_length):
    """Check rows of prompt and answers in the same way."""
    for split in rows.splits:
        counts, split_rows = rows.counts[split], rows.splits[split].to_list()
        columns = rows.splits[split].column_names
        names = sorted({f"{name}_ids" for kind in ANSWERS_BY_KIND.values() for name in kind} & {*columns})
        assert counts["examples"] == mixture.splits[split].num_rows
        assert counts["overlong"] == counts["cut"] + counts["dropped"]
        assert counts["rows"] == len(split_rows) == counts["examples"] - counts["dropped"]
        assert counts["trained_tokens"] == sum(len(row[name]) for row in split_rows for name in names)
        assert all(len(row["prompt_ids"]) + len(row[name]) <= max_length for row in split_rows for name in names)


def trained_positions(row):
    return [i for i, label in enumerate(row["labels"]) if label != schema.IGNORE_INDEX]


def test_every_file_of_rows_has_its_case(manifest_rows):
    assert manifest_rows.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_real_file_becomes_training_rows_and_every_row_is_counted(name, manifest_rows, examples_of, tokenizer):
    case = CASES[name]
    check_file(name, case, case.first, manifest_rows[name], examples_of, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.first])
def test_an_entire_large_real_file_becomes_training_rows(name, manifest_rows, examples_of, tokenizer):
    check_file(name, CASES[name], None, manifest_rows[name], examples_of, tokenizer)


def check_file(name, case, first, num_rows, examples_of, tokenizer):
    records, examples = examples_of(name, first, **case.columns)
    mixture = mix(examples, validation_fraction=0.3)
    rows = tokenize_mixture(mixture, tokenizer, stage=case.stage, max_length=MAX_LENGTH)

    num_read = records.counts["rows"]
    assert num_read + records.counts["rows_beyond_max_rows"] == num_rows
    assert num_read == records.only().num_rows == (first or num_rows)
    dropped = sum(examples.counts["dropped"].values())
    assert num_read == examples.counts["examples"] + dropped
    assert examples.counts["examples"] == mixture.counts["examples"] + mixture.counts["exact_copies_dropped"]
    assert mixture.counts["examples"] == mixture.counts["train"] + mixture.counts["validation"]
    if num_read == num_rows:
        assert (dropped, mixture.counts["exact_copies_dropped"]) == (case.empty, case.copies)
    check = check_answers if case.stage in ANSWERS_BY_KIND else check_rows
    check(rows, mixture, MAX_LENGTH)
    assert set(rows.counts) == {"train", "validation"}


def test_one_object_keyed_by_ids_is_refused(examples_of):
    with pytest.raises(
        DataError, match="got one object with keys such as '21645374' and objects as values. Convert it to a list"
    ):
        examples_of("pubmed/ori_pqal.json.gz")


# contents of the rows


def texts(rows, tokenizer, split="train"):
    """Yield the text of each example of packed rows, and its trained text."""
    decoder = load_tokenizer(tokenizer)
    for row in rows.splits[split]:
        start = 0
        for length in row["lengths"]:
            ids, labels = row["input_ids"][start : start + length], row["labels"][start : start + length]
            yield decoder.decode(ids), decoder.decode([label for label in labels if label != schema.IGNORE_INDEX])
            start += length


def test_real_tool_calls_are_rendered_and_trained(examples_of, tokenizer):
    _, examples = examples_of("llamafactory/glaive_toolcall_en_demo.json")
    mixture = mix(examples)

    rows = tokenize_mixture(mixture, tokenizer, max_length=16_384)

    rendered = list(texts(rows, tokenizer))
    train = mixture.splits["train"]
    assert rows.counts["train"]["dropped"] == 0
    assert sum("\n<tools>\n" in text for text, _ in rendered) == sum(tools != "" for tools in train["tools"])
    calls = [turn for turns in train["messages"] for turn in turns if turn["tool_calls"]]
    results = [turn for turns in train["messages"] for turn in turns if turn["role"] == "tool"]
    assert sum(trained_text.count("<tool_call>\n{") for _, trained_text in rendered) == len(calls) > 100
    assert sum(text.count("<tool_response>") for text, _ in rendered) == len(results) > 100
    assert not any("<tool_response>" in trained_text or "<tools>" in trained_text for _, trained_text in rendered)


def test_real_tool_calls_are_refused_by_a_template_without_tools(examples_of, tiny_model):
    _, examples = examples_of("llamafactory/glaive_toolcall_en_demo.json")

    with pytest.raises(DataError, match="the chat template silently omits"):
        tokenize_mixture(mix(examples), models.tokenizer_manifest(tiny_model))


def test_earlier_rounds_of_real_alpaca_rows_are_turns_that_are_trained(test_data, examples_of, tokenizer):
    name = "sft/oaast_sft_zh.json.gz"
    raw = json.loads(gzip.decompress((test_data / name).read_bytes()))
    _, examples = examples_of(name)
    mixture = mix(examples)

    rows = tokenize_mixture(mixture, tokenizer, max_length=16_384)

    assert [len(turns) for turns in examples.only()["messages"]] == [2 * len(row["history"]) + 2 for row in raw]
    answers = sum(len(turns) // 2 for turns in mixture.splits["train"]["messages"])
    assert (
        sum(trained_text.count("<|im_end|>") for _, trained_text in texts(rows, tokenizer))
        == answers
        > len(mixture.splits["train"])
    )


def test_real_system_messages_come_first_and_are_not_trained(examples_of, tokenizer):
    _, examples = examples_of("sharegpt/moss_multiturn.jsonl.gz", 24)
    mixture = mix(examples, validation_fraction=0.3)

    rows = tokenize_mixture(mixture, tokenizer, max_length=32_768)

    rendered = list(texts(rows, tokenizer))
    assert len(rendered) == mixture.splits["train"].num_rows
    assert all(
        text.startswith("<|im_start|>system\nYou are an AI assistant whose name is MOSS.") for text, _ in rendered
    )
    assert not any("whose name is MOSS" in trained_text for _, trained_text in rendered)


@pytest.mark.parametrize("overlong", ["right", "left", "proportional", "split", "drop"])
def test_very_long_real_chats_are_truncated_by_the_policy(overlong, examples_of, tokenizer):
    _, examples = examples_of("sharegpt/sharegpt_zh.jsonl.gz", 20)
    mixture = mix(examples, validation_fraction=0.3)

    rows = tokenize_mixture(mixture, tokenizer, max_length=1024, overlong=overlong)

    check_rows(rows, mixture, 1024)
    counts, rendered = rows.counts["train"], list(texts(rows, tokenizer))
    assert counts["overlong"] > 5
    assert all(
        trained_text.endswith("<|im_end|>") and len(trained_text) > len("<|im_end|>") for _, trained_text in rendered
    )
    assert all(text.startswith("<|im_start|>user\n") for text, _ in rendered)
    assert (counts["made_by_split"] > 0) == (overlong == "split")
    assert (counts["cut"] == 0) == (overlong == "drop")


# mixtures


def test_two_real_datasets_are_drawn_by_weight_until_both_are_exhausted(test_data, tokenizer):
    names = {"few": "llamafactory/identity.json", "many": "llamafactory/alpaca_en_demo.json"}
    located = ingest.locate_sources([SourceConfig(name=name, path=test_data / file) for name, file in names.items()])
    examples = [align.align(ingest.ingest(located, IngestConfig(name=name)), AlignConfig()) for name in names]
    shares = [SourceShare(name="few", weight=1), SourceShare(name="many", weight=3)]

    mixture = mix(*examples, strategy="interleave_over", shares=shares)
    rows = tokenize_mixture(mixture, tokenizer, max_length=1024)

    counts, train = mixture.counts, mixture.splits["train"]
    assert counts["train"] == sum(source["train"] for source in counts["by_source"].values()) == train.num_rows
    assert 0.7 < counts["train_share"]["many"] < 0.8
    assert len(set(train["id"])) == counts["examples"] - counts["validation"], "every example is drawn at least once"
    assert max(row["copy"] for row in train if row["source"] == "few") >= 2
    assert len({(row["id"], row["copy"]) for row in train}) == train.num_rows, "copies are numbered"
    check_rows(rows, mixture, 1024)


# as a library


def write_recipe(folder, test_data, tiny_model):
    datasets = {
        "grade-school": {
            "path": str(test_data / "sft" / "gsm8k_train.jsonl.gz"),
            "columns": {"instruction": "question", "output": "answer"},
            "max_rows": 300,
        },
        "alpaca": {"path": str(test_data / "llamafactory" / "alpaca_*_demo.json"), "sample": "random"},
    }
    (folder / "datasets.yaml").write_text(yaml.safe_dump(datasets))
    sources = [{"dataset": "grade-school", "repeats": 2}, {"dataset": "alpaca", "max_rows": 200, "max_tokens": 20_000}]
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        template="qwen",
        sources=sources,
        exams=[],
        tokenize={"max_length": 1024, "overlong": "proportional", "max_cut_fraction": 1},
    )
    return tiny.write_config(folder / "run.yaml", recipe)


def test_a_recipe_becomes_training_rows_in_a_few_lines(tmp_path, test_data, tiny_model):
    path = write_recipe(tmp_path, test_data, tiny_model)

    recipe = load.load(path).recipe
    tokenizer, _, _ = models.resolve_model(recipe.model)
    rows = prepare.prepare(recipe, tokenizer)

    mixture = prepare.build_mixture(recipe)
    check_rows(rows, mixture, 1024)
    num_rows = {source["source"]: source["rows"] for source in mixture.counts["sources"]}
    assert num_rows == {"grade-school": 300, "alpaca": 200}
    by_source = mixture.counts["by_source"]["grade-school"]
    assert by_source["train"] == 2 * (by_source["examples"] - by_source["validation"])
    assert rows.counts["train"]["beyond_max_tokens"].keys() == {"alpaca"}


def test_the_library_makes_the_same_rows_as_the_steps(tmp_path, test_data, tiny_model):
    recipe = load.load(write_recipe(tmp_path, test_data, tiny_model)).recipe
    own, base_model, _ = models.resolve_model(recipe.model)

    selected, _ = selection.select_template(
        own, recipe.template, models.model_type(base_model), recipe.template_arguments
    )
    located = ingest.locate_sources(recipe.unique_sources())
    examples = [
        align.align(ingest.ingest(located, recipe.for_ingest(source)), recipe.for_align(source))
        for source in recipe.unique_sources()
    ]
    mixture = merge.merge(examples, NO_EXAMS, recipe.for_merge())
    steps = tokenize.tokenize_pack(mixture, selected, recipe.for_tokenize())

    assert prepare.prepare(recipe, own).content_hash() == steps.content_hash()
