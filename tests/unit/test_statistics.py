"""Bootstrap intervals, against scipy's."""

import numpy as np
import pytest
from scipy import stats

from tuneline import statistics
from tuneline.statistics import McNemarTest, PairedBootstrapTest, SignFlipTest, bootstrap_mean, holm_levels


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


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (9, 1), (5, 5), (1, 8), (30, 14)])
def test_mcnemar_is_scipys_binomial_test_and_agrees_with_its_interval(won, lost):
    test = McNemarTest(won, lost, num_items=100)
    theirs = stats.binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1.0

    assert test.p(0) == pytest.approx(theirs)
    for level in (0.9, 0.95, 0.99):
        assert (test.p(0) < 1 - level) == (test.low(level) > 0)


def test_mcnemar_knows_no_other_bound():
    with pytest.raises(ValueError, match="difference of 0, not 0.1"):
        McNemarTest(3, 1, 10).p(0.1)


def test_the_bootstrap_test_agrees_with_its_interval_and_with_students():
    differences = np.random.default_rng(0).normal(0.3, size=60).tolist()
    test = PairedBootstrapTest(differences, num_resamples=5000)

    assert test.low(0.95) == bootstrap_mean(differences, one_sided=True).low
    assert test.p(test.low(0.95)) == pytest.approx(0.05, abs=0.002)
    assert test.p(0) == pytest.approx(stats.ttest_1samp(differences, 0, alternative="greater").pvalue, abs=0.01)


def test_holm_gives_the_smallest_p_value_the_strictest_level():
    assert holm_levels([0.04, 0.001, 0.02], 0.95) == pytest.approx([0.95, 1 - 0.05 / 3, 0.975])
    assert holm_levels([0.3], 0.9) == pytest.approx([0.9])
    assert holm_levels([], 0.95) == []


@pytest.mark.parametrize("num_items", [2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_counted_as_scipy_enumerates_them(num_items, seed):
    differences = np.random.default_rng(seed).integers(-30, 51, num_items) / 100
    differences[0] = 0.5  # the largest, so that none is rounded and equal sums are equal
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    greater = (np.abs(theirs.null_distribution) >= abs(differences.sum()) - 1e-9).mean()

    assert SignFlipTest(differences.tolist()).two_sided_p() == pytest.approx(greater)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (9, 1), (5, 5), (1, 8), (30, 14), (60, 0)])
def test_sign_flips_of_right_and_wrong_answers_are_mcnemars_test(won, lost):
    differences = [1.0] * won + [-1.0] * lost + [0.0] * 20

    one_sided = McNemarTest(max(won, lost), min(won, lost), len(differences)).p(0)

    assert SignFlipTest(differences).two_sided_p() == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)


def test_sign_flips_have_no_floor_and_many_items_take_a_second():
    assert SignFlipTest([0.5] * 10).two_sided_p() == pytest.approx(2 / 2**10)
    assert SignFlipTest([0.5]).two_sided_p() == 1.0
    assert SignFlipTest([0.5] * 400).two_sided_p() == pytest.approx(2.0**-399)
    many = np.random.default_rng(0).normal(0.05, 1, 3000)
    normal = 2 * stats.norm.sf(abs(many.sum()) / np.sqrt((many**2).sum()))
    assert SignFlipTest(many.tolist()).two_sided_p() == pytest.approx(normal, rel=0.05)


def test_a_value_that_rounds_to_zero_has_no_minus():
    assert statistics.format_score("reward", -0.0001, signed=True) == "+0.000"
    assert statistics.format_score("rougeL", -0.0001) == "0.0"
