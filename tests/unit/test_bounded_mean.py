"""The bounded-mean test: exact where exact results are known, and its error rate never exceeds its level."""

from math import factorial

import numpy as np
import pytest
from scipy.stats import beta

from tuneline import bounded_mean
from tuneline.bounded_mean import BoundedMeanTest


@pytest.mark.parametrize(("num_items", "num_worst"), [(5, 0), (10, 3), (71, 0), (71, 2), (300, 9), (30, 29)])
def test_the_bound_for_two_values_equals_clopper_pearson(num_items, num_worst):
    test = BoundedMeanTest([-1.0] * num_worst + [0.5] * (num_items - num_worst), worst=-1.0)

    most_worst = beta.ppf(0.95, num_worst + 1, num_items - num_worst)

    assert test.low(0.95) == pytest.approx(0.5 - 1.5 * most_worst, abs=1e-9)


@pytest.mark.parametrize("num_items", [1, 5, 40, 300])
def test_small_p_values_are_exact(num_items):
    p = BoundedMeanTest([0.5] * num_items, worst=-1.0).p(0)

    assert p == pytest.approx(1.5**-num_items, rel=1e-4)


@pytest.mark.parametrize("bound", [-0.05, 0.0, 0.03])
def test_the_p_value_is_the_share_of_weighted_means_below_the_bound(bound):
    generator = np.random.default_rng(0)
    differences = generator.normal(0.02, 0.12, 40)
    weights = generator.exponential(size=(40_000, 41))

    share = (weights @ np.append(differences, -1.0) <= bound * weights.sum(axis=1)).mean()

    assert BoundedMeanTest(differences.tolist(), worst=-1.0).p(bound) == pytest.approx(share, abs=0.008)


def test_the_p_value_agrees_with_the_lower_bound_and_ignores_the_order():
    differences = np.random.default_rng(1).normal(0.05, 0.1, 50).tolist()
    test = BoundedMeanTest(differences, worst=-1.0)

    assert test.p(test.low(0.99)) == pytest.approx(0.01, rel=1e-6)
    assert test.low(0.99) < test.low(0.95) < np.mean(differences)
    assert BoundedMeanTest(differences[::-1], worst=-1.0).low(0.95) == test.low(0.95)


@pytest.mark.parametrize(
    ("differences", "bound", "p"), [([-1.0] * 5, -1.0, 1.0), ([0.0] * 5, 0.0, 1.0), ([0.0] * 5, -1.0, 0.0)]
)
def test_certain_outcomes_have_p_values_of_zero_and_one(differences, bound, p):
    assert BoundedMeanTest(differences, worst=-1.0).p(bound) == p


def test_many_distinct_scores_are_merged_without_changing_the_bound(monkeypatch):
    differences = np.random.default_rng(2).normal(0.01, 0.1, 6000).tolist()
    quick = BoundedMeanTest(differences, worst=-1.0).low(0.95)

    monkeypatch.setattr(bounded_mean, "MAX_VALUES", 10_000)

    assert quick == pytest.approx(BoundedMeanTest(differences, worst=-1.0).low(0.95), abs=1e-7)


def test_items_needed_is_the_number_of_such_items_that_passes():
    test = BoundedMeanTest([0.1] * 9, worst=-1.0)

    needed = test.items_needed(0.1, needed=0.0, level=0.95, power=0.8)

    assert needed == np.ceil(np.log(20) / np.log(1.1))
    assert test.items_needed(0.0, needed=0.0, level=0.95, power=0.8) is None
    assert test.items_needed(1e-9, needed=0.0, level=0.95, power=0.8) is None


def three_values(generator, bound):
    """Draw a distribution of three values with mean `bound`; the first is often the worst value."""
    low = -1.0 if generator.random() < 0.7 else generator.uniform(-1, bound)
    high = generator.uniform(bound, 1)
    middle = generator.uniform(low, high)
    weights = generator.dirichlet([0.3, 0.3])
    if middle <= bound:
        below = weights @ [low, middle]
        share = (bound - below) / (high - below)
        return [low, middle, high], [*(weights * (1 - share)), share]
    above = weights @ [middle, high]
    share = (above - bound) / (above - low)
    return [low, middle, high], [share, *(weights * (1 - share))]


@pytest.mark.parametrize(
    ("num_items", "num_tries"), [(5, 120), (10, 30), pytest.param(10, 600, marks=pytest.mark.slow)]
)
def test_the_rejection_rate_never_exceeds_the_level(num_items, num_tries):
    """Distributions of three values; all outcomes are enumerated, so there is no Monte Carlo error."""
    generator = np.random.default_rng(3)
    outcomes = [(i, j, num_items - i - j) for i in range(num_items + 1) for j in range(num_items + 1 - i)]
    ways = np.array([factorial(num_items) / np.prod([factorial(k) for k in counts]) for counts in outcomes])
    for _ in range(num_tries):
        bound = generator.choice([-0.5, -0.1, -0.03, 0.0, 0.05])
        values, shares = three_values(generator, bound)
        probabilities = ways * np.prod(np.array(shares) ** np.array(outcomes), axis=1)
        p_values = np.array([BoundedMeanTest(np.repeat(values, counts).tolist(), -1.0).p(bound) for counts in outcomes])

        assert probabilities.sum() == pytest.approx(1)
        for level in (0.1, 0.05, 0.01):
            assert probabilities[p_values < level].sum() <= level + 1e-9, (values, shares, bound)
