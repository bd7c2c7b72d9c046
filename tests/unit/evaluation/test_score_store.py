"""Scores are stored once per model, protocol and item."""

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
    """Scores items and records their ids."""

    def __init__(self, value=0.5):
        self.scored_ids, self.value = [], value

    def __call__(self, missing):
        self.scored_ids += [item.id for item in missing]
        return [make_score(item, self.value) for item in missing]


def score_items(*ids, model=MODEL, protocol=PROTOCOL, value=0.5):
    answerer = Model(value)
    scores = score_store.score_with_cache(model, protocol, make_items(*ids), answerer)
    return answerer.scored_ids, scores


def test_scores_survive_a_round_trip_through_a_table():
    scores = [make_score(item) for item in make_items("x", "é\u2028\n", "")]

    assert score_store.from_table(score_store.to_table(scores)) == scores


def test_an_empty_table_has_all_columns():
    table = score_store.to_table([])

    assert score_store.from_table(table) == []
    assert table.column_names == score_store.SCHEMA.names


def test_a_table_of_an_earlier_version_gets_defaults():
    score = make_score(make_items("x")[0])
    table = score_store.to_table([score]).select(["benchmark", "item", "prompt", "reference", "output", "metrics"])

    assert score_store.from_table(table) == [score]


def test_time_group_and_contamination_survive_a_round_trip():
    score = score_store.score_answer(
        Item("exam", "x", "p", "A", "STEM/anatomy"), "B", {"accuracy": 0.0}, seconds=0.25, tokens=3
    )
    score = replace(score, contamination="ngram")

    assert score_store.from_table(score_store.to_table([score])) == [score]


def test_scores_before_an_interruption_are_stored():
    def interrupted(missing):
        yield make_score(missing[0])
        yield make_score(missing[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_store.score_with_cache(MODEL, PROTOCOL, make_items("a", "b", "c"), interrupted)

    scored_ids, scores = score_items("a", "b", "c")
    assert scored_ids == ["c"]
    assert [score.item for score in scores] == ["a", "b", "c"]


def test_scores_are_stored_while_others_are_computed(monkeypatch):
    monkeypatch.setattr(score_store, "FLUSH_SECONDS", 0.0)
    stored_files = []

    def slow(missing):
        for item in missing:
            stored_files.append([path.is_file() for path in (state.root() / "scores").rglob("*.parquet")])
            yield make_score(item)

    score_store.score_with_cache(MODEL, PROTOCOL, make_items("a", "b"), slow)

    assert stored_files == [[], [True]]


def test_only_missing_items_are_scored():
    score_items("a", "c")

    scored_ids, scores = score_items("a", "b", "c", "d")

    assert scored_ids == ["b", "d"]
    assert [score.item for score in scores] == ["a", "b", "c", "d"]


def test_a_stored_score_is_reused():
    score_items("a", value=0.25)

    scored_ids, scores = score_items("a", value=0.75)

    assert scored_ids == []
    assert scores == [make_score(make_items("a")[0], value=0.25)]


def test_other_stored_scores_are_kept():
    score_items("a", "b")
    score_items("c")

    assert score_items("a", "b", "c")[0] == []


@pytest.mark.parametrize("other", [{"model": OTHER_MODEL}, {"protocol": OTHER_PROTOCOL}], ids=str)
def test_another_model_or_protocol_is_scored_again(other):
    score_items("a", value=0.25)

    scored_ids, scores = score_items("a", value=0.75, **other)

    assert scored_ids == ["a"]
    assert scores[0].metrics["rougeL"] == 0.75
    assert score_items("a")[1][0].metrics["rougeL"] == 0.25


def test_failed_answers_are_not_stored():
    def fail(missing):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        score_store.score_with_cache(MODEL, PROTOCOL, make_items("a"), fail)

    assert score_items("a")[0] == ["a"]


def test_scores_stored_by_another_process_in_the_meantime_are_kept():
    def slow(missing):
        score_items("b")
        return [make_score(item) for item in missing]

    score_store.score_with_cache(MODEL, PROTOCOL, make_items("a"), slow)

    assert score_items("a", "b")[0] == []


def test_no_other_files_are_stored_with_the_scores():
    score_items("a")

    names = [path.name for path in (state.root() / "scores").rglob("*") if path.is_file()]

    assert names == [f"{PROTOCOL[:32]}.parquet"]


def test_a_renamed_benchmark_reuses_its_answers():
    score_items("a")
    model = Model()

    (score,) = score_store.score_with_cache(MODEL, PROTOCOL, [Item("new name", "a", "p", "r")], model)

    assert model.scored_ids == []
    assert score.benchmark == "new name"
