"""Training rows of a version are identified by example and, if the split is by prompt, by prompt."""

import numpy as np
import pytest
from datasets import Dataset

from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.tracking import training_rows
from tuneline.tracking.training_rows import TrainingRows

pytestmark = pytest.mark.usefixtures("home")


def chat(question, answer):
    return schema.content([schema.message("user", question), schema.message("assistant", answer)])


def pair(question, chosen, rejected):
    answers = {name: [schema.message("assistant", text)] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return schema.content([schema.message("user", question)], **answers)


def mixture(train, validation):
    splits = {
        name: Dataset.from_list([schema.example("s", content) for content in contents], features=schema.EXAMPLE)
        for name, contents in (("train", train), ("validation", validation))
    }
    return Corpus(splits)


def ids(contents):
    return {schema.example("s", content)["id"] for content in contents}


@pytest.fixture(params=[chat, lambda q, a: schema.content(text=f"{q} {a}")], ids=["chat", "text"])
def make(request):
    return request.param


def test_an_example_that_another_version_was_trained_on_is_detected(make):
    a, b, c, d = (make(f"question {i}", f"answer {i}") for i in range(4))
    champion = training_rows.from_mixture(mixture([a, b, a], [c]), "auto")
    candidate = training_rows.from_mixture(mixture([d], [a, c]), "auto")

    assert candidate.seen_by(champion) == ids([a])
    assert champion.seen_by(candidate) == candidate.seen_by(candidate) == set()
    assert len(champion.ids) == 2


@pytest.mark.parametrize(("split_by", "num_seen"), [("auto", 0), ("example", 0), ("prompt", 1)])
def test_another_answer_to_a_chat_prompt_counts_if_the_split_is_by_prompt(split_by, num_seen):
    champion = training_rows.from_mixture(mixture([chat("q", "one")], [chat("x", "x")]), "example")
    candidate = training_rows.from_mixture(mixture([chat("y", "y")], [chat("q", "two"), chat("z", "z")]), split_by)

    assert len(candidate.seen_by(champion)) == num_seen


@pytest.mark.parametrize(("split_by", "num_seen"), [("auto", 1), ("prompt", 1), ("example", 0)])
def test_another_answer_to_a_pair_prompt_counts_unless_the_split_is_by_example(split_by, num_seen):
    champion = training_rows.from_mixture(mixture([pair("q", "good", "bad")], [pair("x", "x", "y")]), "auto")
    candidate = training_rows.from_mixture(mixture([pair("y", "y", "z")], [pair("q", "better", "bad")]), split_by)

    assert len(candidate.seen_by(champion)) == num_seen


def test_training_rows_are_stored_in_a_few_bytes_per_row(tmp_path):
    rows = training_rows.from_mixture(
        mixture([chat(f"q{i}", "a") for i in range(500)], [chat(f"h{i}", "a") for i in range(7)]), "auto"
    )

    rows.save(tmp_path / "rows.npz")
    loaded = TrainingRows.load(tmp_path / "rows.npz")

    assert all(
        np.array_equal(getattr(loaded, name), getattr(rows, name)) for name in ("ids", "prompts", "held_out", "keys")
    )
    assert (tmp_path / "rows.npz").stat().st_size < 500 * 32 + 7 * 48 + 2000
