"""The preview shows what a run makes: for every stage, the same ids with the same loss, and the place of each row."""

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
from tuneline.data.tokenization import html_preview, items, preference_rows, tokenize
from tuneline.data.tokenization.template_compiler import CompiledTemplate, RolePattern
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import DataError, RecipeError, TunelineError
from tuneline.model import resolve, source

RECIPES = sorted(path for path in Path("configs").glob("*.yaml") if "method:" in path.read_text())
TOO_LONG = ("refuse", "drop", "right", "left", "proportional", "split")
FEW = 40
"""Rows of each data set of a shipped recipe that are looked at here."""

words = st.text(st.sampled_from("abcde \n"), min_size=1, max_size=30).filter(str.strip)


def segments(rows):
    """Count the examples of training rows: ids and labels."""
    found = Counter()
    for row in rows:
        laid = preference_rows.flatten_row(row)
        for a, b in pairwise([0, *accumulate(laid["lengths"])]):
            found[tuple(laid["input_ids"][a:b]), tuple(laid["labels"][a:b])] += 1
    return found


def looked_at(shown):
    """Count the sequences of a preview in the same way."""
    found = Counter()
    for tokens, _ in shown:
        labels = [schema.IGNORE_INDEX] * len(tokens.input_ids)
        for start_, end in tokens.trained:
            labels[max(start_, 1) : end] = tokens.input_ids[max(start_, 1) : end]
        found[tuple(tokens.input_ids), tuple(labels)] += 1
    return found


def recipe_over(path, tmp_path, tiny_model):
    """Load a shipped recipe with the tiny model in place of its own; its tokenizer makes more tokens of a text."""
    recipe = yaml.safe_load(path.read_text())["parameters"]["recipe"]
    model = {"type": "directory", "path": str(tiny_model)}
    registry = {"model_name": "tiny", "gate": {"metric": recipe["registry"]["gate"]["metric"]}}
    recipe |= {"model": model, "exams": [], "registry": registry, "evaluate": {}}
    recipe["tokenize"] |= {"overlong": "right", "max_cut_fraction": 1.0}
    for entry in recipe["sources"]:
        entry["path"] = str((path.parent / entry["path"]).resolve())
    return load.load(tiny.write_config(tmp_path / path.name, recipe)).recipe


def rows_of_a_run(examples, manifest, config):
    """Make training rows of examples by the step's function."""
    splits = {"train": examples, "validation": examples.select([])}
    return segments(tokenize.tokenize_pack(Corpus(splits), manifest, config).splits["train"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_preview_of_each_shipped_recipe_shows_what_a_run_makes(path, tmp_path, home, tiny_model, monkeypatch):
    monkeypatch.setattr(sample_rows, "NUM_SAMPLE_ROWS", FEW)
    recipe = recipe_over(path, tmp_path, tiny_model)
    manifest, _ = resolve.locate_tokenizer(recipe.for_resolve())

    seen = sample_rows.preview_sources(recipe, load_tokenizer(manifest), num_shown=FEW)

    shown, made = [each for section in seen.sections for each in section.shown], Counter()
    for entry in recipe.unique_sources():
        records, _ = sample_rows._first_records(sample_rows._located(entry), entry)
        made += rows_of_a_run(align.align(records, recipe.for_align(entry)).only(), manifest, recipe.for_tokenize())
    assert seen.problem is None
    assert looked_at(shown) == made
    assert all(".jsonl:" in each.name for each in shown)


def examples_of(stage, said):
    """Make examples of a stage's kind out of texts: each says one thing, and then another."""
    asked = [schema.message("user", one) for one, _ in said]
    answers = [schema.message("assistant", other) for _, other in said]
    made = {
        "pretrain": lambda i: schema.content(text=said[i][1]),
        "preference": lambda i: schema.content(
            [asked[i]], chosen=[answers[i]], rejected=[schema.message("assistant", "n")]
        ),
        "kto": lambda i: schema.content([asked[i], answers[i]], label=bool(i % 2)),
    }.get(stage, lambda i: schema.content([asked[i], answers[i]]))
    return Dataset.from_list([schema.example("s", made(i)) for i in range(len(said))], features=schema.EXAMPLE)


@pytest.fixture(scope="module", params=["plain", "writes empty thoughts"])
def manifest(request, tiny_model, tmp_path_factory):
    if request.param == "plain":
        return source.tokenizer_manifest(tiny_model)
    folder = tmp_path_factory.mktemp("qwen3")
    chat_templates.tokenizer_for(chat_templates.templates()["trl: qwen3"], tiny_model).save_pretrained(folder)
    return source.tokenizer_manifest(folder)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    overlong=st.sampled_from(TOO_LONG),
    max_length=st.integers(24, 64),
    packing=st.booleans(),
)
@pytest.mark.parametrize("stage", items.KINDS_BY_STAGE)
def test_at_every_stage_the_preview_shows_what_a_run_makes(manifest, home, stage, said, overlong, max_length, packing):
    examples = examples_of(stage, said)
    config = TokenizeStepConfig(
        stage=stage, max_length=max_length, overlong=overlong, packing=packing, max_cut_fraction=1.0
    )
    trial = DryRun(load_tokenizer(manifest), config, 10**6)
    kind = "prompt" if stage == "prompt" else schema.kind(examples[0])

    shown = trial.make(examples, kind).shown
    problem = trial.problem()

    if problem:
        with pytest.raises(DataError) as refused:
            rows_of_a_run(examples, manifest, config)
        assert str(refused.value) == str(problem)
    elif shown:
        assert looked_at(shown) == rows_of_a_run(examples, manifest, config)
    else:
        with pytest.raises(DataError, match="Every training example is longer"):
            rows_of_a_run(examples, manifest, config)


def test_the_answers_of_a_pair_are_named_and_their_rows_placed(tmp_path, home, tiny_model):
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
    checked = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe
    tokenizer = load_tokenizer(source.tokenizer_manifest(tiny_model))

    (section,) = sample_rows.preview_sources(checked, tokenizer, num_shown=2).sections

    assert [each.name for each in section.shown] == [
        f"pairs.jsonl:{line}, {which}" for line in (1, 2) for which in ("chosen", "rejected")
    ]
    assert [tokenizer.decode(each.tokens.input_ids[slice(*each.tokens.trained[0])]) for each in section.shown][:2] == [
        "It is 0.<|im_end|>",
        "No.<|im_end|>",
    ]
    assert "fill" not in section.counts


def test_empty_thoughts_of_the_template_are_shown(tmp_path, home, tiny_model):
    (tmp_path / "qwen3.jinja").write_text(chat_templates.templates()["trl: qwen3"])
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(3))
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
        template="qwen3.jinja",
    )
    checked = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe
    manifest, _ = resolve.locate_tokenizer(checked.for_resolve())

    (section,) = sample_rows.preview_sources(checked, load_tokenizer(manifest)).sections

    assert section.counts["empty_thoughts"] == 3
    assert "an empty thinking block into 3 answers" in dict(section.facts)["empty thoughts"]
    text = html_preview.render_page("", [], [section], load_tokenizer(manifest))
    assert "&lt;/think&gt;<i></i>\n<i></i>\n</pre><mark>" not in text
    assert "&lt;/think&gt;<i></i>\n<i></i>\n<mark>It is 0.</mark>" in text


def refused(recipe, tiny_model):
    """Look at a recipe's rows, and raise what a run would."""
    seen = sample_rows.preview_sources(recipe, load_tokenizer(source.tokenizer_manifest(tiny_model)))
    raise seen.problem or AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": "It is 4.", "train": False}, "^rows.jsonl:3 carries no loss"),
        ({"role": "assistant", "content": "4 " * 400}, "^rows.jsonl:3 has .* more than tokenize.max_length 256"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            r"leaves them out in silence.* It is rows.jsonl:3\. This row can be trained with template: qwen",
        ),
    ],
)
def test_what_a_run_would_refuse_is_named_by_its_line(tmp_path, home, tiny_model, turn, message):
    asked = {"role": "user", "content": "What?"}
    good = [{"messages": [asked, {"role": "assistant", "content": f"It is {i}."}]} for i in range(2)]
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", [*good, {"messages": [asked, turn]}])
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
    )
    checked = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe

    with pytest.raises(TunelineError, match=message):
        refused(checked, tiny_model)


def test_chats_that_a_run_would_not_wrap_are_refused_by_the_preview_too(tmp_path, home, tiny_model):
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(20))
    recipe = tiny.recipe(
        model={"type": "directory", "path": str(tiny_model)},
        sources=[{"name": "mine", "path": str(path)}],
        exams=[],
        evaluate={},
        tokenize={"max_length": 64, "packing": "wrapped"},
    )
    checked = load.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe

    with pytest.raises(RecipeError, match="sources.mine holds examples of kind chat, whose answers it would tear"):
        sample_rows.preview_sources(checked, load_tokenizer(source.tokenizer_manifest(tiny_model)))


def test_pairs_fall_back_to_the_template_and_keep_to_their_budget(tiny_model, home, monkeypatch):
    examples = examples_of("preference", [(f"What is {i}?", f"It is {i}.") for i in range(20)])
    manifest, config = source.tokenizer_manifest(tiny_model), TokenizeStepConfig(stage="preference", max_length=64)
    splits = {"train": examples, "validation": examples.select([])}
    exact = tokenize.tokenize_pack(Corpus(splits), manifest, config).splits["train"]
    pattern = CompiledTemplate.pattern
    monkeypatch.setattr(CompiledTemplate, "pattern", lambda *chat: RolePattern([[7], *pattern(*chat).pieces]))

    made = tokenize.tokenize_pack(Corpus(splits), manifest, config)
    few = tokenize.tokenize_pack(Corpus(splits), manifest, config.model_copy(update={"max_tokens": {"s": 200}}))

    assert made.splits["train"].to_list() == exact.to_list()
    assert made.counts["train"]["rendering"].startswith("template, example by example")
    assert 0 < few.counts["train"]["tokens"] <= 200
    assert few.counts["train"]["beyond_max_tokens"] == {"s": 20 - few.splits["train"].num_rows}
