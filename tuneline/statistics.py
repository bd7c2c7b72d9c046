"""Intervals for means of per-item scores, paired where the same items were answered twice; one-sided paired tests.

A test answers two questions about the true mean difference: how likely the data are were it no more than a bound
(`p`), and what it exceeds with some confidence (`low`). They agree: `p(bound) < 1 - level` where `low(level) > bound`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A mean over items with the ends of its interval."""

    mean: float
    low: float
    high: float
    num_items: int


def format_score(metric: str, value: float, *, signed: bool = False) -> str:
    """Write a value of a metric: in points of a hundred, or as it is where it has no such range.

    Log-likelihoods are nats a token, rewards what the judge makes them.
    """
    sign, whole = "+" if signed else "", metric.removesuffix("_clean")
    plain = whole == "reward" or whole.endswith("log_likelihood")
    return f"{value:{sign}z.3f}" if plain else f"{100 * value:{sign}z.1f}"


def bootstrap_mean(
    values: Sequence[float], level: float = 0.95, num_resamples: int = 5000, seed: int = 0, *, one_sided: bool = False
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979).

    With few items the plain percentiles lie too near; the tails are widened to those of Student's t (Hesterberg 2015,
    "What teachers should know about the bootstrap", expanded percentile).

    Args:
        values: One score an item; for a paired comparison, one difference an item.
        level: Confidence of the interval; of its lower end alone where `one_sided`.
        num_resamples: Draws of as many items, with replacement.
        seed: Of the draws.
        one_sided: The lower end leaves `1 - level` below it, rather than half of that.
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0:
        raise ValueError("There are no items, so there is no mean.")
    tail = _expanded((1 - level) if one_sided else (1 - level) / 2, scores.size)
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
    """Return the mean of the means of strata, with its interval from resamples within each stratum.

    Args:
        strata: Scores of the items of each stratum, like the subjects of an exam.
        level: Confidence of the two-sided interval.
        num_resamples: Draws of as many items in each stratum, with replacement.
        seed: Of the draws.
    """
    groups = [np.asarray(each, dtype=float) for each in strata]
    if not groups or any(each.size == 0 for each in groups):
        raise ValueError("A stratum has no items, so it has no mean.")
    generator = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for each in groups:
        rows = max(1, 2_000_000 // each.size)
        for done in range(0, num_resamples, rows):
            count = min(rows, num_resamples - done)
            total[done : done + count] += each[generator.integers(0, each.size, (count, each.size))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(total / len(groups), [tail, 1 - tail])
    mean = float(np.mean([each.mean() for each in groups]))
    return Interval(mean, float(low), float(high), sum(each.size for each in groups))


def _expanded(tail: float, num_items: int) -> float:
    """Return the share of resamples to leave out on one side, so that the interval is as wide as Student's t."""
    if num_items < 2:
        return tail
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(num_items / (num_items - 1)) * t.ppf(tail, num_items - 1)))


class PairedTest(Protocol):
    """A one-sided test of the mean of paired differences."""

    @property
    def name(self) -> str:
        """Its name in a decision."""

    def p(self, bound: float) -> float:
        """Return how likely a mean this large or larger is, were the true one `bound`; in [0, 1]."""

    def low(self, level: float) -> float:
        """Return what the true mean exceeds with confidence `level`."""


class PairedBootstrapTest:
    """The expanded percentile bootstrap of `bootstrap_mean`, as a test.

    Args:
        differences: One an item, at least two.
        num_resamples: Draws; no p-value is smaller than one in as many.
        seed: Of the draws.
    """

    name = "bootstrap"

    def __init__(self, differences: Sequence[float], num_resamples: int = 5000, seed: int = 0) -> None:
        self._scores = np.asarray(differences, dtype=float)
        self._num_resamples, self._seed = num_resamples, seed

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return _resampled_means(self._scores, self._num_resamples, self._seed)

    def p(self, bound: float) -> float:
        """Return the level at which `low` would reach the bound."""
        from scipy.stats import norm, t

        share = (np.count_nonzero(self._means <= bound) + 1) / (self._num_resamples + 1)
        size = self._scores.size
        return float(t.cdf(np.sqrt((size - 1) / size) * norm.ppf(share), size - 1)) if share < 1 else 1.0

    def low(self, level: float) -> float:
        """Return the lower end of the one-sided interval."""
        return float(np.quantile(self._means, _expanded(1 - level, self._scores.size)))


@dataclass(frozen=True)
class McNemarTest:
    """The exact test for right and wrong answers, against no difference (McNemar 1947; exact: Cochran 1950).

    Only items answered differently count: were neither better, each would fall to either side like a coin.
    """

    won: int
    """Items that were wrong and are right."""

    lost: int
    """Items that were right and are wrong."""

    num_items: int
    name: str = "mcnemar"

    def p(self, bound: float) -> float:
        """Return the p-value.

        Raises:
            ValueError: The bound is not 0, the only one that the coin speaks of.
        """
        if bound != 0:
            raise ValueError(f"The exact test of McNemar asks for a difference of 0, not {bound}.")
        from scipy.stats import binom

        return float(binom.sf(self.won - 1, self.won + self.lost, 0.5))

    def low(self, level: float) -> float:
        """Return the lower end by Clopper and Pearson (1934), given how many items were answered differently."""
        from scipy.stats import beta

        different = self.won + self.lost
        share = float(beta.ppf(1 - level, self.won, self.lost + 1)) if self.won else 0.0
        return (2 * share - 1) * different / self.num_items


@dataclass(frozen=True)
class SignFlipTest:
    """The exact test of paired differences against answers that are alike (Fisher 1935; Pitman 1937).

    Were neither better, each difference would have either sign like a coin: all ways to set the signs are counted, not
    drawn, so no p-value has a floor. Of right and wrong answers it is the exact test of McNemar.

    Args:
        differences: One per item. They count in steps of a ten-thousandth of the largest, or, of many items, of what
            lets all of them reach over 100,000 steps; rounding both signs alike keeps the test exact.
    """

    differences: Sequence[float]
    most_steps: int = 100_000

    def two_sided_p(self) -> float:
        """Return how likely a sum this far from 0 is, were every sign a coin."""
        scores = np.asarray(self.differences, dtype=float)
        sizes = np.abs(scores)
        if not sizes.any():
            return 1.0
        unit = max(sizes.max() / 10_000, sizes.sum() / self.most_steps)
        steps = np.rint(sizes / unit).astype(int)
        observed = abs(int(np.sign(scores) @ steps))
        ways = np.ones(1)  # probability of each sum of those that are positive
        for step in np.sort(steps[steps > 0]):
            longer = np.zeros(len(ways) + step)
            longer[: len(ways)] = ways / 2
            longer[step:] += ways / 2
            ways = longer
        total = len(ways) - 1
        return min(1.0, 2 * float(ways[-(-(total + observed) // 2) :].sum())) if observed else 1.0


def is_binary(scores: Sequence[float]) -> bool:
    """Tell whether every score is 0 or 1."""
    return set(scores) <= {0.0, 1.0}


def holm_levels(p_values: Sequence[float], level: float) -> list[float]:
    """Return the confidence at which each of several tests is made, so that all claims hold together (Holm 1979).

    The smallest p-value of `m` meets `1 - (1 - level) / m`, the next `1 - (1 - level) / (m - 1)`, and so on. They are
    gone through in this order, and with the first that fails all that follow have failed.

    Args:
        p_values: One a test.
        level: Confidence that no claim is false, in (0, 1).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    ranks = {place: rank for rank, place in enumerate(order)}
    return [1 - (1 - level) / (len(p_values) - ranks[place]) for place in range(len(p_values))]
