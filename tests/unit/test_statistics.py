"""Confidence intervals and significance tests, compared with scipy."""

import numpy as np
import pytest
from scipy import stats

from tuneline import statistics
from tuneline.statistics import McNemarTest, PairedBootstrapTest, SignFlipTest, bootstrap_mean, holm_levels


def test_the_bootstrap_interval_equals_scipys():
    values = np.random.default_rng(0).normal(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval

    interval = bootstrap_mean(values.tolist(), num_resamples=9999)

    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert interval.mean == pytest.approx(values.mean())


def test_a_one_sided_bound_is_tighter_than_a_two_sided_one():
    values = np.random.default_rng(0).normal(size=80).tolist()

    assert bootstrap_mean(values, one_sided=True).low > bootstrap_mean(values).low


def test_equal_scores_have_an_interval_of_zero_width():
    interval = bootstrap_mean([0.5] * 10)

    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_an_empty_list_is_an_error():
    with pytest.raises(ValueError, match="no items"):
        bootstrap_mean([])


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (9, 1), (5, 5), (1, 8), (30, 14)])
def test_mcnemar_equals_scipys_binomial_test_and_agrees_with_its_interval(won, lost):
    test = McNemarTest(won, lost, num_items=100)
    expected = stats.binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1.0

    assert test.p(0) == pytest.approx(expected)
    for level in (0.9, 0.95, 0.99):
        assert (test.p(0) < 1 - level) == (test.low(level) > 0)


def test_mcnemar_supports_only_a_difference_of_zero():
    with pytest.raises(ValueError, match="difference of 0, not 0.1"):
        McNemarTest(3, 1, 10).p(0.1)


def test_the_bootstrap_test_agrees_with_its_interval_and_with_students_t_test():
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
def test_the_sign_flip_test_equals_scipys_permutation_test(num_items, seed):
    differences = np.random.default_rng(seed).integers(-30, 51, num_items) / 100
    differences[0] = 0.5  # the largest, so that none is rounded and equal sums are equal
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    greater = (np.abs(expected.null_distribution) >= abs(differences.sum()) - 1e-9).mean()

    assert SignFlipTest(differences.tolist()).two_sided_p() == pytest.approx(greater)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (9, 1), (5, 5), (1, 8), (30, 14), (60, 0)])
def test_the_sign_flip_test_of_binary_scores_equals_mcnemars_test(won, lost):
    differences = [1.0] * won + [-1.0] * lost + [0.0] * 20

    one_sided = McNemarTest(max(won, lost), min(won, lost), len(differences)).p(0)

    assert SignFlipTest(differences).two_sided_p() == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)


def test_the_sign_flip_test_has_no_smallest_p_value_and_handles_many_items():
    assert SignFlipTest([0.5] * 10).two_sided_p() == pytest.approx(2 / 2**10)
    assert SignFlipTest([0.5]).two_sided_p() == 1.0
    assert SignFlipTest([0.5] * 400).two_sided_p() == pytest.approx(2.0**-399)
    many = np.random.default_rng(0).normal(0.05, 1, 3000)
    normal = 2 * stats.norm.sf(abs(many.sum()) / np.sqrt((many**2).sum()))
    assert SignFlipTest(many.tolist()).two_sided_p() == pytest.approx(normal, rel=0.05)


def test_a_value_that_rounds_to_zero_has_no_minus():
    assert statistics.format_score("reward", -0.0001, signed=True) == "+0.000"
    assert statistics.format_score("rougeL", -0.0001) == "0.0"
