"""Bootstrap intervals, against scipy's."""

import numpy as np
import pytest
from scipy import stats

from tuneline.statistics import bootstrap_mean


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval

    ours = bootstrap_mean(values.tolist(), num_resamples=9999)

    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.mean == pytest.approx(values.mean())


def test_one_side_lies_nearer_than_two():
    values = np.random.default_rng(0).normal(size=80).tolist()

    assert bootstrap_mean(values, one_sided=True).low > bootstrap_mean(values).low


def test_equal_scores_have_an_interval_without_width():
    interval = bootstrap_mean([0.5] * 10)

    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no items"):
        bootstrap_mean([])
