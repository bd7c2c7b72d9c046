"""Packing puts every example into exactly one row, and no row exceeds its capacity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneline.data.tokenization.packing import best_fit_decreasing

lists = st.lists(st.integers(1, 16), max_size=64)


@given(lengths=lists)
def test_every_example_is_in_one_row_with_enough_space(lengths):
    rows = best_fit_decreasing(lengths, capacity=16)

    assert sorted(int(i) for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 16 for row in rows)
    assert all(list(row) == sorted(row) for row in rows)


@given(lengths=lists.filter(bool))
def test_no_two_rows_could_be_merged(lengths):
    sizes = sorted(sum(lengths[i] for i in row) for row in best_fit_decreasing(lengths, capacity=16))

    assert len(sizes) < 2 or sizes[0] + sizes[1] > 16


@given(lengths=lists.filter(bool))
def test_the_number_of_rows_equals_that_of_a_plain_best_fit(lengths):
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        space = [16 - sum(lengths[j] for j in row) for row in rows]
        fits = [k for k, free in enumerate(space) if free >= lengths[i]]
        if fits:
            rows[min(fits, key=lambda k: space[k])].append(i)
        else:
            rows.append([i])

    assert len(best_fit_decreasing(lengths, capacity=16)) == len(rows)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        best_fit_decreasing([9], capacity=8)
