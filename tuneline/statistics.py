"""Confidence intervals for means of per-item scores, and one-sided tests of paired differences.

A test gives the p-value of a true mean difference of at most a bound (`p`), and the lower confidence limit of the true
mean difference (`low`). They agree: `p(bound) < 1 - level` exactly if `low(level) > bound`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A mean over items with its confidence interval."""

    mean: float
    low: float
    high: float
    num_items: int


def format_score(metric: str, value: float, *, signed: bool = False) -> str:
    """Format a value of a metric in percentage points; log-likelihoods (nats per token) and rewards unscaled."""
    sign, whole = "+" if signed else "", metric.removesuffix("_clean")
    plain = whole == "reward" or whole.endswith("log_likelihood")
    return f"{value:{sign}z.3f}" if plain else f"{100 * value:{sign}z.1f}"


def bootstrap_mean(
    values: Sequence[float], level: float = 0.95, num_resamples: int = 5000, seed: int = 0, *, one_sided: bool = False
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979).

    With few items the plain percentile interval is too narrow; its tails are widened to those of Student's t
    (Hesterberg 2015, "What teachers should know about the bootstrap", expanded percentile).

    Args:
        values: One score per item; for a paired comparison, one difference per item.
        level: Confidence of the interval; of its lower end if `one_sided`.
        num_resamples: Number of resamples, each of as many items with replacement.
        seed: Seed of the resamples.
        one_sided: The lower end excludes `1 - level`, rather than half of that.
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0:
        raise ValueError("The mean of no items is not defined.")
    tail = _expanded_tail((1 - level) if one_sided else (1 - level) / 2, scores.size)
    low, high = np.quantile(_resampled_means(scores, num_resamples, seed), [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high), int(scores.size))


def _resampled_means(scores: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // scores.size)
    means = [
        scores[generator.integers(0, scores.size, (min(rows, num_resamples - done), scores.size))].mean(axis=1)
        for done in range(0, num_resamples, rows)
    ]
    return np.concatenate(means)


def bootstrap_macro(
    strata: Sequence[Sequence[float]], level: float = 0.95, num_resamples: int = 5000, seed: int = 0
) -> Interval:
    """Return the mean of the stratum means, with its interval from resamples within each stratum.

    Args:
        strata: Scores of the items of each stratum, such as the subjects of an exam.
        level: Confidence of the two-sided interval.
        num_resamples: Number of resamples, each of as many items per stratum with replacement.
        seed: Seed of the resamples.
    """
    groups = [np.asarray(scores, dtype=float) for scores in strata]
    if not groups or any(group.size == 0 for group in groups):
        raise ValueError("A stratum has no items, so its mean is not defined.")
    generator = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for group in groups:
        rows = max(1, 2_000_000 // group.size)
        for done in range(0, num_resamples, rows):
            count = min(rows, num_resamples - done)
            total[done : done + count] += group[generator.integers(0, group.size, (count, group.size))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(total / len(groups), [tail, 1 - tail])
    mean = float(np.mean([group.mean() for group in groups]))
    return Interval(mean, float(low), float(high), sum(group.size for group in groups))


def _expanded_tail(tail: float, num_items: int) -> float:
    """Return the share of resamples to exclude on one side, so that the interval is as wide as Student's t."""
    if num_items < 2:
        return tail
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(num_items / (num_items - 1)) * t.ppf(tail, num_items - 1)))


class PairedTest(Protocol):
    """A one-sided test of the mean of paired differences."""

    @property
    def name(self) -> str:
        """Name of the test in a decision."""

    def p(self, bound: float) -> float:
        """Return the p-value of a true mean of at most `bound`, in [0, 1]."""

    def low(self, level: float) -> float:
        """Return the lower confidence limit of the true mean at `level`."""


class PairedBootstrapTest:
    """The expanded percentile bootstrap of `bootstrap_mean`, as a test.

    Args:
        differences: One per item, at least two.
        num_resamples: Number of resamples; the smallest p-value is about its inverse.
        seed: Seed of the resamples.
    """

    name = "bootstrap"

    def __init__(self, differences: Sequence[float], num_resamples: int = 5000, seed: int = 0) -> None:
        self._scores = np.asarray(differences, dtype=float)
        self._num_resamples, self._seed = num_resamples, seed

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return _resampled_means(self._scores, self._num_resamples, self._seed)

    def p(self, bound: float) -> float:
        """Return the p-value: 1 minus the level at which `low` equals the bound."""
        from scipy.stats import norm, t

        share = (np.count_nonzero(self._means <= bound) + 1) / (self._num_resamples + 1)
        size = self._scores.size
        return float(t.cdf(np.sqrt((size - 1) / size) * norm.ppf(share), size - 1)) if share < 1 else 1.0

    def low(self, level: float) -> float:
        """Return the lower end of the one-sided interval at `level`."""
        return float(np.quantile(self._means, _expanded_tail(1 - level, self._scores.size)))


@dataclass(frozen=True)
class McNemarTest:
    """The exact test for right and wrong answers, against no difference (McNemar 1947; exact: Cochran 1950).

    Only items with different results count; under the null hypothesis each goes to either side with probability 1/2.
    """

    won: int
    """Items that only the candidate answered correctly."""

    lost: int
    """Items that only the opponent answered correctly."""

    num_items: int
    name: str = "mcnemar"

    def p(self, bound: float) -> float:
        """Return the p-value.

        Raises:
            ValueError: The bound is not 0.
        """
        if bound != 0:
            raise ValueError(f"The exact test of McNemar tests a difference of 0, not {bound}.")
        from scipy.stats import binom

        return float(binom.sf(self.won - 1, self.won + self.lost, 0.5))

    def low(self, level: float) -> float:
        """Return the lower end by Clopper and Pearson (1934), given the number of items with different results."""
        from scipy.stats import beta

        different = self.won + self.lost
        share = float(beta.ppf(1 - level, self.won, self.lost + 1)) if self.won else 0.0
        return (2 * share - 1) * different / self.num_items


@dataclass(frozen=True)
class SignFlipTest:
    """The exact sign-flip permutation test of paired differences (Fisher 1935; Pitman 1937).

    Under the null hypothesis each difference has either sign with probability 1/2. All sign patterns are counted, not
    sampled, so p-values have no lower limit. For right and wrong answers it equals the exact test of McNemar.

    Args:
        differences: One per item. They are rounded to steps of a ten-thousandth of the largest, or, with many items, to
            steps such that their sum is at most `most_steps`; rounding both signs alike keeps the test exact.
    """

    differences: Sequence[float]
    most_steps: int = 100_000

    def two_sided_p(self) -> float:
        """Return the p-value of a sum at least this far from 0."""
        scores = np.asarray(self.differences, dtype=float)
        sizes = np.abs(scores)
        if not sizes.any():
            return 1.0
        unit = max(sizes.max() / 10_000, sizes.sum() / self.most_steps)
        steps = np.rint(sizes / unit).astype(int)
        observed = abs(int(np.sign(scores) @ steps))
        probabilities = np.ones(1)  # probability of each sum of the positive differences
        for step in np.sort(steps[steps > 0]):
            extended = np.zeros(len(probabilities) + step)
            extended[: len(probabilities)] = probabilities / 2
            extended[step:] += probabilities / 2
            probabilities = extended
        total = len(probabilities) - 1
        return min(1.0, 2 * float(probabilities[-(-(total + observed) // 2) :].sum())) if observed else 1.0


def is_binary(scores: Sequence[float]) -> bool:
    """Return whether every score is 0 or 1."""
    return set(scores) <= {0.0, 1.0}


def holm_levels(p_values: Sequence[float], level: float) -> list[float]:
    """Return the confidence level of each of several tests for a common level (Holm 1979).

    The smallest of `m` p-values is tested at `1 - (1 - level) / m`, the next at `1 - (1 - level) / (m - 1)`, and so on.
    After the first test that fails, all later ones fail.

    Args:
        p_values: One per test.
        level: Confidence that no rejected hypothesis is true, in (0, 1).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    ranks = {index: rank for rank, index in enumerate(order)}
    return [1 - (1 - level) / (len(p_values) - ranks[index]) for index in range(len(p_values))]
