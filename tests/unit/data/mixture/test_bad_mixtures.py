"""Datasets that cannot be mixed, from the recipe to the error."""

import pytest

from tests.data_rows import ALPACA, ALPACA_LINES, lines

pytestmark = pytest.mark.usefixtures("home")


def test_a_dataset_of_copies_is_reported(error_of):
    _, message = error_of({"d.jsonl": lines(*[ALPACA[0]] * 40)})

    assert message == (
        "merge.validation_fraction 0.2 holds out 0 of 1 examples (39 exact copies were dropped); at least 5 are "
        "required. Raise it, or add rows."
    )


def test_too_few_rows_for_a_held_out_split_are_reported(error_of):
    _, message = error_of({"d.jsonl": lines(*ALPACA[:6])})

    assert message == (
        "merge.validation_fraction 0.2 holds out 2 of 6 examples; at least 5 are required. Raise it, or add rows."
    )


def test_two_kinds_of_examples_cannot_be_mixed(error_of):
    texts = lines(*({"text": f"text {i}"} for i in range(20)))
    both = [{"name": "a", "path": "data/a.jsonl"}, {"name": "b", "path": "data/b.jsonl"}]

    _, message = error_of({"a.jsonl": ALPACA_LINES, "b.jsonl": texts}, sources=both)

    assert message == (
        "sources hold examples of different kinds (a: 40 chat; b: 20 text), but a recipe trains on one kind. Use a "
        "separate recipe for each kind."
    )


def test_a_dataset_that_only_repeats_another_cannot_be_sampled(error_of):
    both = [{"name": "a", "path": "data/a.jsonl"}, {"name": "b", "path": "data/b.jsonl", "weight": 3.0}]
    merge = {"strategy": "interleave_under", "validation_fraction": 0.2}

    _, message = error_of({"a.jsonl": ALPACA_LINES, "b.jsonl": ALPACA_LINES}, sources=both, merge=merge)

    assert message == (
        "b adds no training example that other datasets lack, so merge.strategy 'interleave_under' cannot draw from "
        "it. Remove it from sources."
    )
