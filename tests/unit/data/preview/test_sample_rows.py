"""The preview shows the rows of a run: for every stage, the same ids, the same loss, and the location of each row."""

from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import chat_templates
from tests import tiny
from tuneline.config import load
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.preview import sample_rows
from tuneline.data.preview.dry_run import DryRun
from tuneline.data.tokenization import html_preview, preference_rows, tokenize, tokenized_examples
from tuneline.data.tokenization.template_compiler import CompiledTemplate, RolePattern
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import DataError, RecipeError, TunelineError
from tuneline.model import resolve, source

RECIPES = sorted(path for path in Path("configs").glob("*.yaml") if "method:" in path.read_text())
TOO_LONG = ("refuse", "drop", "right", "left", "proportional", "split")
FEW = 40
"""Rows that are previewed of each dataset of a shipped recipe."""

words = st.text(st.sampled_from("abcde \n"), min_size=1, max_size=30).filter(str.strip)


def segments(rows):
    """Count the examples of training rows by ids and labels."""
    counts = Counter()
    for row in rows:
        flat = preference_rows.flatten_row(row)
        for a, b in pairwise([0, *accumulate(flat["lengths"])]):
            counts[tuple(flat["input_ids"][a:b]), tuple(flat["labels"][a:b])] += 1
    return counts


def preview_segments(sequences):
    """Count the sequences of a preview in the same way."""
    counts = Counter()
    for tokens, _ in sequences:
        labels = [schema.IGNORE_INDEX] * len(tokens.input_ids)
        for start_, end in tokens.trained:
            labels[max(start_, 1) : end] = tokens.input_ids[max(start_, 1) : end]
        counts[tuple(tokens.input_ids), tuple(labels)] += 1
    return counts


def recipe_over(path, tmp_path, tiny_model):
    """Load a shipped recipe with the tiny model, whose tokenizer splits a text into more tokens than the original."""
    recipe = yaml.safe_load(path.read_text())["parameters"]["recipe"]
    model = {"type": "directory", "path": str(tiny_model)}
    registry = {"model_name": "tiny", "gate": {"metric": recipe["registry"]["gate"]["metric"]}}
    recipe |= {"model": model, "exams": [], "registry": registry, "evaluate": {}}
    recipe["tokenize"] |= {"overlong": "right", "max_cut_fraction": 1.0}
    for entry in recipe["sources"]:
        entry["path"] = str((path.parent / entry["path"]).resolve())
    return load.load(tiny.write_config(tmp_path / path.name, recipe)).recipe


def run_segments(examples, manifest, config):
    """Make the training rows of examples as the step does, and count them."""
    splits = {"train": examples, "validation": examples.select([])}
    return segments(tokenize.tokenize_pack(Corpus(splits), manifest, config).splits["train"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_preview_of_each_shipped_recipe_shows_the_rows_of_a_run(path, tmp_path, home, tiny_model, monkeypatch):
    monkeypatch.setattr(sample_rows, "NUM_SAMPLE_ROWS", FEW)
    recipe = recipe_over(path, tmp_path, tiny_model)
    manifest, _ = resolve.locate_tokenizer(recipe.for_resolve())

    result = sample_rows.preview_sources(recipe, load_tokenizer(manifest), num_shown=FEW)

    sequences, expected = [sequence for section in result.sections for sequence in section.shown], Counter()
    for entry in recipe.unique_sources():
        records, _ = sample_rows._first_records(sample_rows._locate_source(entry), entry)
        expected += run_segments(align.align(records, recipe.for_align(entry)).only(), manifest, recipe.for_tokenize())
    assert result.problem is None
    assert preview_segments(sequences) == expected
    assert all(".jsonl:" in sequence.name for sequence in sequences)


def examples_of(stage, rounds):
    """Make examples of a stage's kind from pairs of question and answer."""
    questions = [schema.message("user", question) for question, _ in rounds]
    answers = [schema.message("assistant", answer) for _, answer in rounds]
    content_of = {
        "pretrain": lambda i: schema.content(text=rounds[i][1]),
        "preference": lambda i: schema.content(
            [questions[i]], chosen=[answers[i]], rejected=[schema.message("assistant", "n")]
        ),
        "kto": lambda i: schema.content([questions[i], answers[i]], label=bool(i % 2)),
    }.get(stage, lambda i: schema.content([questions[i], answers[i]]))
    return Dataset.from_list([schema.example("s", content_of(i)) for i in range(len(rounds))], features=schema.EXAMPLE)


@pytest.fixture(scope="module", params=["plain", "empty thinking blocks"])
def manifest(request, tiny_model, tmp_path_factory):
    if request.param == "plain":
        return source.tokenizer_manifest(tiny_model)
    folder = tmp_path_factory.mktemp("qwen3")
    chat_templates.tokenizer_for(chat_templates.templates()["trl: qwen3"], tiny_model).save_pretrained(folder)
    return source.tokenizer_manifest(folder)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    overlong=st.sampled_from(TOO_LONG),
    max_length=st.integers(24, 64),
    packing=st.booleans(),
)
@pytest.mark.parametrize("stage", tokenized_examples.KINDS_BY_STAGE)
def test_at_every_stage_the_preview_shows_the_rows_of_a_run(
    manifest, home, stage, rounds, overlong, max_length, packing
):
    examples = examples_of(stage, rounds)
    config = TokenizeStepConfig(
        stage=stage, max_length=max_length, overlong=overlong, packing=packing, max_cut_fraction=1.0
    )
    dry_run = DryRun(load_tokenizer(manifest), config, 10**6)
    kind = "prompt" if stage == "prompt" else schema.kind(examples[0])

    sequences = dry_run.run(examples, kind).shown
    problem = dry_run.length_error()

    if problem:
        with pytest.raises(DataError) as error:
            run_segments(examples, manifest, config)
        assert str(error.value) == str(problem)
    elif sequences:
        assert preview_segments(sequences) == run_segments(examples, manifest, config)
    else:
        with pytest.raises(DataError, match="Every training example is longer"):
            run_segments(examples, manifest, config)


def test_the_answers_of_a_pair_are_named_with_the_location_of_their_row(tmp_path, home, tiny_model):
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(20)]
    path = tiny.write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = tiny.recipe(
        stage="dpo",
        registry={"model_name": "tiny", "gate": {"metric": "preference_accuracy"}},
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
    )
    run_recipe = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe
    tokenizer = load_tokenizer(source.tokenizer_manifest(tiny_model))

    (section,) = sample_rows.preview_sources(run_recipe, tokenizer, num_shown=2).sections

    assert [sequence.name for sequence in section.shown] == [
        f"pairs.jsonl:{line}, {which}" for line in (1, 2) for which in ("chosen", "rejected")
    ]
    assert [tokenizer.decode(item.tokens.input_ids[slice(*item.tokens.trained[0])]) for item in section.shown][:2] == [
        "It is 0.<|im_end|>",
        "No.<|im_end|>",
    ]
    assert "fill" not in section.counts


def test_empty_thinking_blocks_of_the_template_are_shown(tmp_path, home, tiny_model):
    (tmp_path / "qwen3.jinja").write_text(chat_templates.templates()["trl: qwen3"])
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(3))
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
        template="qwen3.jinja",
    )
    run_recipe = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe
    manifest, _ = resolve.locate_tokenizer(run_recipe.for_resolve())

    (section,) = sample_rows.preview_sources(run_recipe, load_tokenizer(manifest)).sections

    assert section.counts["empty_thoughts"] == 3
    assert "an empty thinking block into 3 answers" in dict(section.facts)["empty thoughts"]
    text = html_preview.render_page("", [], [section], load_tokenizer(manifest))
    assert "&lt;/think&gt;<i></i>\n<i></i>\n</pre><mark>" not in text
    assert "&lt;/think&gt;<i></i>\n<i></i>\n<mark>It is 0.</mark>" in text


def preview_or_raise(recipe, tiny_model):
    """Preview a recipe, and raise the error that a run would raise."""
    result = sample_rows.preview_sources(recipe, load_tokenizer(source.tokenizer_manifest(tiny_model)))
    raise result.problem or AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": "It is 4.", "train": False}, "^rows.jsonl:3 has no tokens with loss"),
        ({"role": "assistant", "content": "4 " * 400}, "^rows.jsonl:3 has .* more than tokenize.max_length 256"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            r"silently omits.* Affected row: rows.jsonl:3\. This row can be trained with template: qwen",
        ),
    ],
)
def test_a_row_that_a_run_refuses_is_named_by_its_line(tmp_path, home, tiny_model, turn, message):
    question = {"role": "user", "content": "What?"}
    good = [{"messages": [question, {"role": "assistant", "content": f"It is {i}."}]} for i in range(2)]
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", [*good, {"messages": [question, turn]}])
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
    )
    run_recipe = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe

    with pytest.raises(TunelineError, match=message):
        preview_or_raise(run_recipe, tiny_model)


def test_wrapped_packing_of_chats_is_refused_by_the_preview(tmp_path, home, tiny_model):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(20))
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
        tokenize={"max_length": 64, "packing": "wrapped"},
    )
    run_recipe = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe

    with pytest.raises(
        RecipeError, match="sources.mine contains examples of kind chat, whose answers would be separated"
    ):
        sample_rows.preview_sources(run_recipe, load_tokenizer(source.tokenizer_manifest(tiny_model)))


def test_pairs_fall_back_to_the_original_template_and_respect_their_budget(tiny_model, home, monkeypatch):
    examples = examples_of("preference", [(f"What is {i}?", f"It is {i}.") for i in range(20)])
    manifest, config = source.tokenizer_manifest(tiny_model), TokenizeStepConfig(stage="preference", max_length=64)
    splits = {"train": examples, "validation": examples.select([])}
    exact = tokenize.tokenize_pack(Corpus(splits), manifest, config).splits["train"]
    pattern = CompiledTemplate.pattern
    monkeypatch.setattr(CompiledTemplate, "pattern", lambda *chat: RolePattern([[7], *pattern(*chat).pieces]))

    rows = tokenize.tokenize_pack(Corpus(splits), manifest, config)
    few = tokenize.tokenize_pack(Corpus(splits), manifest, config.model_copy(update={"max_tokens": {"s": 200}}))

    assert rows.splits["train"].to_list() == exact.to_list()
    assert rows.counts["train"]["rendering"].startswith("template, example by example")
    assert 0 < few.counts["train"]["tokens"] <= 200
    assert few.counts["train"]["beyond_max_tokens"] == {"s": 20 - few.splits["train"].num_rows}
