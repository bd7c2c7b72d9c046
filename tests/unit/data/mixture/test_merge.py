"""The mixture: stable splits, no unrequested copies, reproducible orders."""

import hashlib
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tuneline.config.sections.data import MergeConfig, MergeStepConfig, SourceShare
from tuneline.config.stages import SFTRecipe
from tuneline.data import schema
from tuneline.data.corpus import Corpus, RowWriter
from tuneline.data.mixture import interleave, merge
from tuneline.errors import DataError
from tuneline.identity import Manifest

pytestmark = pytest.mark.usefixtures("home")
NO_EXAMS = Manifest(kind="benchmarks", items=[])
TURNS = [schema.message("user", "q", train=False), schema.message("assistant", "", tool_calls='[{"name":"f"}]')]

answers = st.lists(st.integers(0, 30).map(str), max_size=40)


def corpus(name, answers, **fields):
    contents = [
        schema.content([schema.message("user", "q"), schema.message("assistant", answer)], **fields)
        for answer in answers
    ]
    return corpus_of(name, contents)


def corpus_of(name, contents):
    with RowWriter(schema.EXAMPLE) as writer:
        writer.write(schema.to_arrow_columns([schema.example(name, content) for content in contents]))
    return Corpus({"examples": writer.rows()}, {"source": name}, {"dropped": {}})


def merge_corpora(corpora, *, hold_out=0.0, **config):
    return merge.merge(corpora, NO_EXAMS, MergeStepConfig(validation_fraction=hold_out, **config))


def summary(rows):
    return [(row["source"], row["messages"][1]["content"], row["copy"]) for row in rows]


def ids(rows, copy=None):
    return [row["id"] for row in rows if copy in (None, row["copy"])]


@given(ids=st.lists(st.text(min_size=1), min_size=1), fraction=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_the_split_depends_only_on_id_fraction_and_seed(ids, fraction, seed):
    sides = merge.held_out_mask(ids, fraction, seed)

    points = [int(hashlib.sha256(f"{seed}:{id_}".encode()).hexdigest()[:16], 16) / 2**64 for id_ in ids]
    assert sides.tolist() == [point < fraction for point in points]


def test_the_held_out_share_is_close_to_the_fraction():
    num_held_out = merge.held_out_mask([str(i) for i in range(10_000)], 0.3).sum()

    assert 2_800 < num_held_out < 3_200


@settings(max_examples=30, deadline=None)
@given(few=answers, more=answers, many=answers)
def test_the_split_of_a_row_does_not_depend_on_other_datasets(few, more, many):
    fixed = [str(i) for i in range(100, 150)]
    single = merge_corpora([corpus("a", fixed)], hold_out=0.4)
    others = [corpus("b", few), corpus("a", [*more, *fixed]), corpus("c", many)]
    together = merge_corpora(others, hold_out=0.4)

    for split in ("train", "validation"):
        assert set(ids(single.splits[split])) <= set(ids(together.splits[split]))


@settings(max_examples=30, deadline=None)
@given(few=answers, more=answers, repeats=st.integers(1, 3))
def test_every_distinct_example_is_in_one_split_and_repeated_in_training(few, more, repeats):
    corpora = [corpus("a", few), corpus("b", [*more, *map(str, range(100, 130))])]
    mixture = merge_corpora(corpora, hold_out=0.5, shares=[SourceShare(name="b", repeats=repeats)])
    train, validation = mixture.splits["train"], mixture.splits["validation"]

    distinct = {row["id"] for part in corpora for row in part.only()}
    assert Counter(ids(train, copy=0) + ids(validation)) == Counter(distinct)
    times = {"a": 1, "b": repeats}
    assert Counter(ids(train)) == {row["id"]: times[row["source"]] for row in train}
    assert set(validation["copy"]) <= {0}


def example_of(prompt, answer, kind):
    prompt_turns, answer_turns = [schema.message("user", prompt)], [schema.message("assistant", answer)]
    if kind == "preference":
        return schema.content(prompt_turns, chosen=answer_turns, rejected=[schema.message("assistant", "no")])
    return schema.content([*prompt_turns, *answer_turns], label=True if kind == "kto" else None)


@pytest.mark.parametrize(
    ("kind", "split_by", "together"),
    [
        ("preference", "auto", True),
        ("kto", "auto", True),
        ("chat", "auto", False),
        ("chat", "prompt", True),
        ("preference", "example", False),
    ],
)
def test_all_answers_to_a_prompt_are_in_one_split_if_split_by_prompt(kind, split_by, together):
    rows = corpus_of("a", [example_of(f"question {i // 4}", f"answer {i}", kind) for i in range(160)])

    mixture = merge_corpora([rows], hold_out=0.5, split_by=split_by)

    sides = [{row["messages"][0]["content"] for row in mixture.splits[side]} for side in ("train", "validation")]
    assert sides[0] | sides[1] == {f"question {i}" for i in range(40)}
    assert sides[0].isdisjoint(sides[1]) == together
    assert all(len(side) > 10 for side in sides)


def test_a_prompt_of_another_dataset_is_in_the_same_split():
    first, second = (corpus_of(name, [example_of(f"q {i}", name, "kto") for i in range(60)]) for name in "ab")

    validation = merge_corpora([first, second], hold_out=0.5).splits["validation"]

    by_source = {name: {row["messages"][0]["content"] for row in validation if row["source"] == name} for name in "ab"}
    assert by_source["a"] == by_source["b"]
    assert len(by_source["a"]) > 15


def test_copies_are_dropped_and_counted_for_each_dataset():
    mixture = merge_corpora([corpus("a", "xxyz"), corpus("b", "xyw")])

    assert summary(mixture.splits["train"]) == [("a", "x", 0), ("a", "y", 0), ("a", "z", 0), ("b", "w", 0)]
    assert mixture.counts["exact_copies_dropped"] == 3
    assert {name: counts["exact_copies_dropped"] for name, counts in mixture.counts["by_source"].items()} == {
        "a": 1,
        "b": 2,
    }
    assert mixture.counts["train_share"] == {"a": 0.75, "b": 0.25}


def test_a_dataset_listed_twice_counts_twice_in_training_and_once_held_out():
    base = tiny.recipe()
    first, second = base["sources"]
    recipe = SFTRecipe.model_validate(base | {"sources": [first, second, first, first]})
    numbers = [str(i) for i in range(60)]

    mixture = merge.merge([corpus("first", numbers[:40]), corpus("second", numbers[40:])], NO_EXAMS, recipe.for_merge())

    counts, train = mixture.counts["by_source"], mixture.splits["train"]
    assert counts["first"]["train"] == 3 * (40 - counts["first"]["validation"])
    assert counts["second"]["train"] == 20 - counts["second"]["validation"]
    assert Counter(train.filter(lambda row: row["source"] == "first")["copy"]) == dict.fromkeys(
        (0, 1, 2), 40 - counts["first"]["validation"]
    )


def test_repeats_are_complete_consecutive_passes():
    mixture = merge_corpora(
        [corpus("a", "xy"), corpus("b", "z")], shares=[SourceShare(name="a", repeats=2), SourceShare(name="b")]
    )

    assert summary(mixture.splits["train"]) == [
        ("a", "x", 0),
        ("a", "y", 0),
        ("a", "x", 1),
        ("a", "y", 1),
        ("b", "z", 0),
    ]


def test_examples_are_unchanged_by_the_mixture():
    contents = [schema.content([*TURNS, schema.message("tool", str(i))], tools='[{"name":"f"}]') for i in range(3000)]
    examples = corpus_of("a", contents)

    train = merge_corpora([examples]).splits["train"]

    assert train.remove_columns("copy").to_list() == examples.only().to_list()
    assert train.features == schema.MIXED


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 5)), min_size=1, max_size=4),
    strategy=st.sampled_from(["interleave_under", "interleave_over"]),
    seed=st.integers(0, 99),
)
def test_the_interleaved_order_equals_that_of_the_datasets_library(sets, strategy, seed):
    lengths, weights = zip(*sets, strict=True)
    shares = [SourceShare(name=str(i), weight=weight) for i, weight in enumerate(weights)]

    order = interleave.draw_order(list(lengths), shares, MergeConfig(strategy=strategy, mix_seed=seed))

    expected = datasets.interleave_datasets(
        [Dataset.from_dict({"at": [i] * length}) for i, length in enumerate(lengths)],
        probabilities=(np.array(weights) / sum(weights)).tolist(),
        seed=seed,
        stopping_strategy={"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}[strategy],
    )
    assert order.tolist() == expected["at"][:]


def test_rows_are_sampled_in_proportion_to_weights_with_default_1():
    shares = [SourceShare(name="a", weight=3), SourceShare(name="b")]

    order = interleave.draw_order([50_000, 50_000], shares, MergeConfig(strategy="interleave_under"))

    assert 0.74 < np.mean(order == 0) < 0.76


def test_under_stops_at_the_first_exhausted_dataset_and_counts_unused_rows():
    corpora = [corpus("a", map(str, range(20))), corpus("b", map(str, range(100, 1100)))]

    mixture = merge_corpora(corpora, strategy="interleave_under")

    a, b = mixture.counts["by_source"]["a"], mixture.counts["by_source"]["b"]
    assert (a["train"], a["train_never_drawn"]) == (20, 0)
    assert b["train"] + b["train_never_drawn"] == 1000
    assert summary(mixture.splits["train"])[-1] == ("a", "19", 0)


def test_over_stops_when_all_datasets_are_exhausted_and_counts_copies():
    corpora = [corpus("a", "xy"), corpus("b", map(str, range(50)))]

    train = summary(merge_corpora(corpora, strategy="interleave_over").splits["train"])

    assert {row[1:] for row in train if row[0] == "b"} >= {(str(i), 0) for i in range(50)}
    rows_of_a = [row[1:] for row in train if row[0] == "a"]
    assert rows_of_a == [("xy"[i % 2], i // 2) for i in range(len(rows_of_a))]


def test_repeats_lengthen_a_sampled_dataset():
    corpora = [corpus("a", "xy"), corpus("b", map(str, range(1000)))]

    mixture = merge_corpora(corpora, strategy="interleave_under", shares=[SourceShare(name="a", repeats=3)])

    assert [row for row in summary(mixture.splits["train"]) if row[0] == "a"] == [
        ("a", answer, copy) for copy in range(3) for answer in "xy"
    ]


def test_a_dataset_of_copies_cannot_be_sampled():
    with pytest.raises(
        DataError, match="^b adds no training example that other datasets lack, so merge.strategy 'interleave_ov"
    ):
        merge_corpora([corpus("a", "xy"), corpus("b", "y")], strategy="interleave_over")


def test_too_few_held_out_rows_are_reported():
    with pytest.raises(DataError, match="holds out 0 of 1 examples; at least 5"):
        merge_corpora([corpus("a", "x")], hold_out=1e-9)


def test_an_empty_training_split_is_reported():
    with pytest.raises(DataError, match="holds out every example"):
        merge_corpora([corpus("a", "x")], hold_out=0.999999)


def test_mixed_kinds_are_refused_with_their_datasets():
    corpora = [corpus("a", "xy"), corpus("b", "zx", label=True), corpus("c", "w", chosen=TURNS, rejected=TURNS)]

    with pytest.raises(DataError, match="kinds \\(a: 2 chat; b: 2 kto; c: 1 preference\\), but a recipe trains on one"):
        merge_corpora(corpora)


contents = st.builds(
    schema.content,
    st.sampled_from([None, TURNS]),
    chosen=st.sampled_from([None, TURNS]),
    label=st.sampled_from([None, True, False]),
    text=st.sampled_from(["", "t"]),
)


@given(contents=st.lists(contents, min_size=1))
def test_kinds_of_a_batch_equal_those_of_single_examples(contents):
    batch = pa.RecordBatch.from_pydict(schema.to_arrow_columns([schema.example("a", content) for content in contents]))

    assert [merge.KINDS[i] for i in merge.example_kinds(batch)] == [schema.kind(content) for content in contents]


@given(ids=st.lists(st.binary(min_size=2, max_size=2).map(lambda end: bytes(7) + end + bytes(7)), min_size=1))
def test_the_first_of_equal_ids_is_kept_even_with_zero_bytes(ids):
    assert merge.first_occurrences(np.array(ids, "S16")).tolist() == [id_ not in ids[:i] for i, id_ in enumerate(ids)]


def shared_wording(
    num_rows, shared="Answer as the friendly clerk of a small bank would, in one sentence, without any name"
):
    return corpus("a", [f"{shared} {i}" for i in range(num_rows)])


def test_a_shared_instruction_does_not_contaminate_the_held_out_rows():
    mixture = merge_corpora([shared_wording(40)], hold_out=0.3, gate_sets=["held_out"])

    held_out = mixture.counts["contamination"]["held_out"]
    assert (held_out["ngram"], held_out["boilerplate"]) == (0, held_out["items"])
    assert mixture.counts["boilerplate"][0]["rows"] == mixture.counts["train"] > 10


def test_too_few_clean_items_for_the_gate_are_reported_before_training():
    rows = [shared_wording(40)]
    settings = {"hold_out": 0.3, "boilerplate_rows": 40}

    with pytest.raises(
        DataError, match=r"(\d+) of the \1 held-out examples that the gate .* so 0 clean ones .* at least 5 are"
    ):
        merge_corpora(rows, **settings, gate_sets=["held_out"])
    assert merge_corpora(rows, **settings).counts["contamination"]["held_out"]["ngram"] > 5, "no gate leaves them out"


def test_only_the_held_out_rows_that_are_scored_must_be_clean():
    leaked = "the one long answer that stands in very many of all these rows and that nobody can miss"
    rows = [corpus("a", [f"{leaked} {i}" if i % 2 else f"answer {i}" for i in range(200)])]
    settings = {"hold_out": 0.3, "boilerplate_rows": 1000}
    held_out = merge_corpora(rows, **settings).splits["validation"]
    first = sorted(held_out, key=lambda row: row["id"])
    num_first = next(n for n in range(5, 60) if sum(leaked not in r["messages"][1]["content"] for r in first[:n]) == 5)

    assert merge_corpora(rows, **settings, gate_sets=["held_out"], max_items=num_first).counts["validation"] == len(
        held_out
    )
    with pytest.raises(DataError, match=rf"of the {num_first - 1} held-out examples .* so 4 clean ones"):
        merge_corpora(rows, **settings, gate_sets=["held_out"], max_items=num_first - 1)


@pytest.mark.parametrize(
    ("gate", "gate_sets"),
    [
        ({}, ["held_out"]),
        ({"metric": "exam_accuracy"}, ["exam"]),
        ({"guards": [{"metric": "exam_accuracy", "margin": 0.1}]}, ["exam", "held_out"]),
        ({"exclude_contaminated": False}, []),
    ],
)
def test_only_benchmarks_of_the_gate_must_be_clean(tmp_path, gate, gate_sets):
    recipe = SFTRecipe(
        stage="sft",
        model={"type": "directory", "path": tmp_path},
        sources=[{"name": "rows", "path": tmp_path}],
        exams=[{"name": "exam", "path": tmp_path}],
        method={"type": "lora"},
        registry={"model_name": "m", "gate": gate},
    )

    assert recipe.for_merge().gate_sets == gate_sets
