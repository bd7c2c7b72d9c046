"""Scores are kept once, by model, protocol and item."""

from dataclasses import replace

import pytest

from tuneline import state
from tuneline.evaluation import score_store
from tuneline.evaluation.score_store import Item

pytestmark = pytest.mark.usefixtures("home")
MODEL, OTHER_MODEL = "a" * 64, "b" * 64
PROTOCOL, OTHER_PROTOCOL = "1" * 64, "2" * 64


def make_items(*ids):
    return [Item("held_out", i, f"What is {i}?", f"It is {i}.") for i in ids]


def make_score(item, value=0.5):
    return score_store.score_answer(item, f"answer to {item.id}", {"rougeL": value, "rouge1": 1.0})


class Model:
    """Answers, and remembers what it was asked."""

    def __init__(self, value=0.5):
        self.asked, self.value = [], value

    def __call__(self, missing):
        self.asked += [item.id for item in missing]
        return [make_score(item, self.value) for item in missing]


def ask(*ids, model=MODEL, protocol=PROTOCOL, value=0.5):
    asked = Model(value)
    scores = score_store.score_with_cache(model, protocol, make_items(*ids), asked)
    return asked.asked, scores


def test_scores_survive_a_table_and_keep_their_text():
    scores = [make_score(item) for item in make_items("x", "é\u2028\n", "")]

    assert score_store.from_table(score_store.to_table(scores)) == scores


def test_no_scores_make_an_empty_table_with_columns():
    table = score_store.to_table([])

    assert score_store.from_table(table) == []
    assert table.column_names == score_store.SCHEMA.names


def test_a_table_of_an_earlier_version_reads_with_defaults():
    score = make_score(make_items("x")[0])
    table = score_store.to_table([score]).select(["benchmark", "item", "prompt", "reference", "output", "metrics"])

    assert score_store.from_table(table) == [score]


def test_time_group_and_contamination_survive_a_table():
    told = score_store.score_answer(
        Item("exam", "x", "p", "A", "STEM/anatomy"), "B", {"accuracy": 0.0}, seconds=0.25, tokens=3
    )
    told = replace(told, contamination="ngram")

    assert score_store.from_table(score_store.to_table([told])) == [told]


def test_what_came_before_an_interruption_is_kept_and_not_asked_again():
    def interrupted(missing):
        yield make_score(missing[0])
        yield make_score(missing[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_store.score_with_cache(MODEL, PROTOCOL, make_items("a", "b", "c"), interrupted)

    asked, scores = ask("a", "b", "c")
    assert asked == ["c"]
    assert [score.item for score in scores] == ["a", "b", "c"]


def test_scores_are_written_while_others_are_still_asked(monkeypatch):
    monkeypatch.setattr(score_store, "FLUSH_SECONDS", 0.0)
    seen = []

    def slow(missing):
        for item in missing:
            seen.append([path.is_file() for path in (state.root() / "scores").rglob("*.parquet")])
            yield make_score(item)

    score_store.score_with_cache(MODEL, PROTOCOL, make_items("a", "b"), slow)

    assert seen == [[], [True]]


def test_only_missing_items_are_asked():
    ask("a", "c")

    asked, scores = ask("a", "b", "c", "d")

    assert asked == ["b", "d"]
    assert [score.item for score in scores] == ["a", "b", "c", "d"]


def test_a_score_is_that_of_the_first_time():
    ask("a", value=0.25)

    asked, scores = ask("a", value=0.75)

    assert asked == []
    assert scores == [make_score(make_items("a")[0], value=0.25)]


def test_scores_that_are_not_asked_for_are_kept():
    ask("a", "b")
    ask("c")

    assert ask("a", "b", "c")[0] == []


@pytest.mark.parametrize("other", [{"model": OTHER_MODEL}, {"protocol": OTHER_PROTOCOL}], ids=str)
def test_another_model_or_protocol_is_asked_again(other):
    ask("a", value=0.25)

    asked, scores = ask("a", value=0.75, **other)

    assert asked == ["a"]
    assert scores[0].metrics["rougeL"] == 0.75
    assert ask("a")[1][0].metrics["rougeL"] == 0.25


def test_nothing_is_kept_of_answers_that_failed():
    def fail(missing):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        score_store.score_with_cache(MODEL, PROTOCOL, make_items("a"), fail)

    assert ask("a")[0] == ["a"]


def test_scores_that_another_process_wrote_meanwhile_are_kept():
    def slow(missing):
        ask("b")
        return [make_score(item) for item in missing]

    score_store.score_with_cache(MODEL, PROTOCOL, make_items("a"), slow)

    assert ask("a", "b")[0] == []


def test_nothing_lies_beside_the_stored_scores():
    ask("a")

    names = [path.name for path in (state.root() / "scores").rglob("*") if path.is_file()]

    assert names == [f"{PROTOCOL[:32]}.parquet"]


def test_a_renamed_benchmark_keeps_its_answers_under_the_new_name():
    ask("a")
    model = Model()

    (score,) = score_store.score_with_cache(MODEL, PROTOCOL, [Item("new name", "a", "p", "r")], model)

    assert model.asked == []
    assert score.benchmark == "new name"
